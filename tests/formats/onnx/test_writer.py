"""What is in the folder, read back by the letter of the operators' schemas."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from qconvert.asked import Asked
from qconvert.checkpoint import open_checkpoint
from qconvert.codes import Fitted
from qconvert.formats.onnx.kinds import Kind
from qconvert.formats.onnx.packing import elements, fields
from qconvert.formats.onnx.target import TARGET
from qconvert.formats.target import Plan, Request
from qconvert.formats.tensor import QuantizedTensor
from qconvert.pipeline import convert

QDQ = (("onnx-form", "qdq"),)
EVERY = Request(layers=(
    ("v_proj", "int8-g64"), ("0.mlp.down_proj", "float"), ("o_proj", "int2-g16-asym"),
    ("gate_proj", "int3"), ("up_proj", "int3-asym"), ("lm_head", "int8-asym"),
    ("embed_tokens", "int4-g128-asym"),
))  # fmt: skip


def converted(model: Path, out: Path, request: Request | None = None, threads: int = 1) -> Any:
    """By rounding to nearest, which needs no text."""
    return convert(model, "onnx", out=out, request=request or Request(), threads=threads,
                   asked=Asked(method="rtn"))  # fmt: skip


def planned(model: Path, request: Request) -> tuple[Any, Plan]:
    source = open_checkpoint(model)
    return source, TARGET.plan(source, request)


def expected(model: Path, request: Request) -> dict[str, Any]:
    """Output tensor -> what the codes made for it stand for, or its floats."""
    source, plan = planned(model, request)
    found = {}
    for one in plan.tensors:
        assert one.source is not None
        whole = (0, one.source.shape[0])
        if one.grid is None:
            found[one.name] = source.rows(one.source, *whole)
        else:
            (codes,) = Fitted(source)(one, [whole], 1)
            found[one.name] = one.grid.decode(codes)
    return found


@pytest.mark.parametrize("form", ["matmulnbits", "qdq"])
@pytest.mark.parametrize(
    ("family", "own", "request_"),
    [
        ("llama", {}, Request()),
        ("llama", {"vocab_size": 517}, Request(symmetric=False)),
        ("llama", {"tie_word_embeddings": True}, Request(bits=8)),
        ("llama", {"attention_bias": True, "mlp_bias": True}, Request(type="float32")),
        ("llama", {}, EVERY),
        ("qwen2", {}, Request(bits=2)),
        ("phi3", {}, Request(bits=3, group=64)),
        ("gemma3_text", {}, Request(group=256)),
    ],
)
def test_every_weight_is_what_its_codes_stand_for(
    tiny_model: Callable[..., Path],
    literal: ModuleType,
    tmp_path: Path,
    family: str,
    own: dict[str, Any],
    request_: Request,
    form: str,
) -> None:
    model = tiny_model(family, **own)
    request = replace(request_, own=(("onnx-form", form),))
    out = tmp_path / "out"
    done = converted(model, out=out, request=request, threads=1)
    assert sum(file.stat().st_size for file in done.files) == done.plan.nbytes
    assert {file.name for file in done.files} == {file.name for file in out.iterdir()}
    want = expected(model, request)
    offset = 1.0 if family.startswith("gemma") else 0.0
    found = literal.state(
        literal.Graph(out), {name: values.shape for name, values in want.items()}, offset
    )
    for name, values in want.items():
        shown = np.float32(1) + values - np.float32(1) if offset and values.ndim == 1 else values
        assert np.array_equal(found[name], shown), name


def test_forms_and_other_targets_hold_the_same_weights(
    tiny_model: Callable[..., Path], literal: ModuleType, tmp_path: Path
) -> None:
    for name, own in (("one", ()), ("two", QDQ)):
        converted(tiny_model("llama"), out=tmp_path / name, request=Request(own=own), threads=1)
    graphs = [literal.Graph(tmp_path / name) for name in ("one", "two")]
    shapes = {one.name: one.shape for one in open_checkpoint(tiny_model("llama")).tensors}
    first, second = (literal.state(graph, shapes) for graph in graphs)
    assert all(np.array_equal(first[name], second[name]) for name in shapes)
    assert planned(tiny_model("llama"), Request())[1].tensors[0].grid.name == "int4_g32_portable"


@pytest.mark.parametrize("own", [(), QDQ])
def test_the_same_bytes_whatever_the_threads(
    tiny_model: Callable[..., Path], tmp_path: Path, own: Any
) -> None:
    for threads in (1, 2):
        converted(tiny_model("llama"), out=tmp_path / str(threads), request=Request(own=own),
                threads=threads)  # fmt: skip
    for file in (tmp_path / "1").iterdir():
        assert file.read_bytes() == (tmp_path / "2" / file.name).read_bytes()


def test_tables_are_written(
    tiny_model: Callable[..., Path], literal: ModuleType, tmp_path: Path
) -> None:
    converted(tiny_model("gemma3_text"), out=tmp_path / "out", threads=1)
    graph = literal.Graph(tmp_path / "out")
    angles = np.arange(512)[:, None] * 10000.0 ** (-np.arange(0, 64, 2) / 64)
    assert np.abs(graph.array("cos_cache_local") - np.cos(angles)).max() < 1e-4
    assert np.abs(graph.array("sin_cache_local") - np.sin(angles)).max() < 1e-4


def test_regions_do_not_overlap_and_can_be_mapped(tiny_model: Callable[..., Path]) -> None:
    _, plan = planned(tiny_model("llama"), EVERY)
    folder = plan.details["onnx"]
    spans = sorted(folder.regions.values())
    for (begin, nbytes), (after, _) in itertools.pairwise(spans):
        assert begin + nbytes <= after
    assert all(begin % (4096 if nbytes >= 1 << 16 else 64) == 0 for begin, nbytes in spans)
    assert folder.size == sum(spans[-1])


def test_a_failure_leaves_nothing(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    _, plan = planned(tiny_model("llama"), Request())

    def begin_and_fail() -> None:
        with TARGET.writer(plan, tmp_path / "out"):
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        begin_and_fail()
    with pytest.raises(ValueError, match="were not written"), TARGET.writer(plan, tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_lies_beside_the_graph(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    converted(tiny_model("llama"), out=out, threads=1)
    assert {file.name for file in out.iterdir()} >= {
        "model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    decoder = json.loads((out / "genai_config.json").read_text())["model"]["decoder"]
    assert (decoder["head_size"], decoder["num_key_value_heads"]) == (64, 2)
    assert TARGET.recognises(out)
    assert not TARGET.recognises(tiny_model("llama"))


def test_bytes_by_hand() -> None:
    codes = np.array([[0, 1, 15, 8, 7]], np.uint8)
    assert fields(codes, 4).tolist() == [[0x10, 0x8F, 0x07]]
    assert fields(np.array([[3, 0, 1, 2, 1]], np.uint8), 2).tolist() == [[0b10_01_00_11, 1]]
    # signed: code - 8, two's complement; INT4 of [-8, -7, 7, 0, -1]
    assert elements(codes, Kind(4), 4).tolist() == [0x98, 0x07, 0x0F]
    assert elements(codes, Kind(4, 32, False), 4).tolist() == [0x10, 0x8F, 0x07]
    assert elements(np.array([[0, 128, 255]], np.uint8), Kind(8), 8).tolist() == [128, 0, 127]


def test_three_bits_keep_their_zero() -> None:
    """In fields of four bits, whose zero is 8 where none is stored."""
    from qconvert.formats.onnx.packing import code_bytes

    tensor = QuantizedTensor("int3_g32", np.array([[0, 4, 7, 3]], np.uint8), {})
    assert code_bytes(tensor, Kind(3)).tolist() == [[0x84, 0x7B]]
    assert code_bytes(tensor, Kind(3, 32, False)).tolist() == [[0x40, 0x37]]
