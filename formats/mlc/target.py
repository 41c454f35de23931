"""The MLC target: weight folders for `mlc_llm compile` and `mlc_llm serve`, and their reader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from qconvert.formats.mlc.cache import INDEX, OLDER_INDEX
from qconvert.formats.mlc.chat import conversation_of
from qconvert.formats.mlc.config import CONFIG, chat_config
from qconvert.formats.mlc.folder import Layout, plan_tensors
from qconvert.formats.mlc.model import Model, read_model
from qconvert.formats.mlc.options import COMPATIBLE
from qconvert.formats.mlc.reader import open_reader
from qconvert.formats.mlc.schemes import BY_BITS, NOT_MADE, SCHEMES, Scheme
from qconvert.formats.mlc.tokenizer import Tokenizer, read_tokenizer
from qconvert.formats.mlc.writer import open_folder, outputs, overhead
from qconvert.formats.refusal import Reason, collecting, raise_if_any, refuse
from qconvert.formats.source import Source
from qconvert.formats.target import Plan, Reader, Request, Sink

RULE = "--mlc-compatible rounds by MLC's own rule, and a method would round otherwise"


class MlcTarget:
    """`formats.target.Target` for MLC-LLM and what is built on it (WebLLM)."""

    name = "mlc"
    summary = "weight folders for MLC-LLM: mlc_llm compile, mlc_llm serve, WebLLM"
    takes = frozenset({"bits", "type"})
    folder = True
    unquantized = "q0f16"
    types: Sequence[tuple[str, str]] = tuple((one.name, one.summary) for one in SCHEMES.values())

    def plan(self, source: Source, request: Request) -> Plan:
        """The scheme, every tensor and all files; `Refused` with all reasons, from headers."""
        reasons: list[Reason] = []
        scheme, model, tokenizer = None, None, None
        compatible = request.option(COMPATIBLE) is not None
        with collecting(reasons):
            scheme = _scheme(request, compatible=compatible)
        with collecting(reasons):
            model = read_model(source)
        with collecting(reasons):
            tokenizer = read_tokenizer(source)
        raise_if_any(reasons)
        assert scheme is not None
        assert model is not None
        assert tokenizer is not None
        return _plan(source, scheme, model, tokenizer, compatible=compatible)

    def writer(self, plan: Plan, path: Path) -> AbstractContextManager[Sink]:
        return open_folder(plan, path)

    def outputs(self, plan: Plan, path: Path) -> tuple[Path, ...]:
        return outputs(plan, path)

    def recognises(self, path: Path) -> bool:
        """By the files that MLC's own programs open first."""
        index = any((path / name).is_file() for name in (INDEX, OLDER_INDEX))
        return index and (path / CONFIG).is_file()

    def about(self, path: Path) -> Mapping[str, str]:
        """What `qconvert inspect` says first of an output."""
        found = open_reader(path).metadata
        return {"type": str(found.get("quantization")), "serve": _serve(str(path))}

    def reader(self, path: Path) -> Reader:
        return open_reader(path)


TARGET = MlcTarget()


def _serve(folder: str) -> str:
    return f"mlc_llm serve {folder}"


def _scheme(request: Request, *, compatible: bool) -> Scheme:
    """What `--type` or `--bits` asks for."""
    bits = BY_BITS.get(4 if request.bits is None else request.bits)
    if bits is None:
        known = " or ".join(f"--bits {one}" for one in BY_BITS)
        raise refuse(f"--bits {request.bits}: MLC has no integers of this size", known)
    name = request.type or bits
    if name not in SCHEMES:
        near = NOT_MADE.get(name)
        known = ", ".join(SCHEMES)
        what = "is not written here" if near else "is no scheme of MLC"
        raise refuse(f"--type {name} {what}", f"--type {near}" if near else f"it has {known}")
    scheme = SCHEMES[name]
    if request.type and request.bits is not None and SCHEMES[bits].bits != scheme.bits:
        raise refuse(
            f"--type {name} and --bits {request.bits} contradict each other",
            "leave one of them out",
        )
    if compatible and not scheme.quantizes:
        raise refuse(
            f"--mlc-compatible: nothing is rounded in {name}", "leave it out, or take q4f16_1"
        )
    return scheme


def _plan(
    source: Source, scheme: Scheme, model: Model, tokenizer: Tokenizer, *, compatible: bool
) -> Plan:
    tensors, places, records = plan_tensors(source, model.arch, scheme, compatible=compatible)
    chat = conversation_of(source, tokenizer)
    layout = Layout(
        scheme, compatible, places, records,
        files={CONFIG: chat_config(source.model_type, model, scheme, tokenizer, source.config,
                                   chat.conversation.fields())},
        copies=tokenizer.copies,
    )  # fmt: skip
    ending = f"{scheme.name}-MLC-compatible" if compatible else f"{scheme.name}-MLC"
    plan = Plan(
        target=TARGET.name,
        type=scheme.name,
        tensors=tensors,
        default_name=f"{source.folder.resolve().name}-{ending}",
        notes=(*model.notes, *tokenizer.notes, *chat.notes),
        details={"mlc": layout, "gathers": scheme.layout == "KN",
                 "about": {"serve": _serve("{folder}")}},
        rule=RULE if compatible else "",
    )  # fmt: skip
    return replace(plan, overhead_bytes=overhead(plan))
