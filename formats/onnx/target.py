"""The ONNX target: a folder that ONNX Runtime and onnxruntime-genai run as it is."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from qconvert.formats.onnx.choice import Choice, asked, choose
from qconvert.formats.onnx.genai import CONFIG, token_problems
from qconvert.formats.onnx.kinds import FLOAT
from qconvert.formats.onnx.library import library_problems
from qconvert.formats.onnx.model import Model, read_model
from qconvert.formats.onnx.options import FORM
from qconvert.formats.refusal import Reason, collecting, raise_if_any
from qconvert.formats.source import Source
from qconvert.formats.target import Plan, Reader, Request, Sink

GRAPH = "model.onnx"
DEFAULT_FORM = "matmulnbits"


class OnnxTarget:
    """`formats.target.Target` for ONNX Runtime."""

    name = "onnx"
    summary = (
        "folders for ONNX Runtime and onnxruntime-genai: 4, 8, 3 and 2 bits, on CPUs and phones"
    )
    takes = frozenset({"bits", "type", "group", "symmetric", "layers"})
    folder = True
    unquantized = FLOAT
    types: Sequence[tuple[str, str]] = (
        ("int4", "4 bits in groups of 32, embedding and head as well; also as int4-g64-asym"),
        ("int8", "8 bits in groups of 32"),
        ("int3", "3 bits, stored in 4: no kernel has 3"),
        ("int2", "2 bits in groups of 32"),
        (FLOAT, "not quantized, float32"),
    )

    def plan(self, source: Source, request: Request) -> Plan:
        """The kind of every matrix, the graph and its data file; `Refused` with all reasons."""
        reasons: list[Reason] = []
        model: Model | None = None
        choice: Choice | None = None
        with collecting(reasons):
            model = read_model(source)
        with collecting(reasons):
            wish, layers = asked(request)
            if model is not None:
                choice = choose(source, wish, layers)
        reasons += library_problems()
        reasons += token_problems(source)
        raise_if_any(reasons)
        assert model is not None
        assert choice is not None
        from qconvert.formats.onnx.planning import plan_folder

        form = request.option(FORM) or DEFAULT_FORM
        return plan_folder(self.name, source, model, choice, form)

    def writer(self, plan: Plan, path: Path) -> AbstractContextManager[Sink]:
        from qconvert.formats.onnx.writer import open_writer

        return open_writer(plan, path)

    def outputs(self, plan: Plan, path: Path) -> tuple[Path, ...]:
        from qconvert.formats.onnx.writer import outputs

        return outputs(plan, path)

    def recognises(self, path: Path) -> bool:
        return (path / CONFIG).is_file() and (path / GRAPH).is_file()

    def reader(self, path: Path) -> Reader:
        from qconvert.formats.onnx.reader import open_reader

        return open_reader(path)


TARGET = OnnxTarget()
