"""Faults in single tensors are found; what rounding does to them is not taken for one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from qconvert.asked import Asked
from qconvert.checkpoint import Checkpoint, open_checkpoint
from qconvert.formats.gguf.target import TARGET
from qconvert.formats.target import target_named
from qconvert.pipeline import convert
from qconvert.runtimes.weights import NOT_COMPARED, UP_TO_SCALE, TensorError, WeightCheck

Q = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.layers.1.input_layernorm.weight"


def errors(
    source: Checkpoint,
    path: Path,
    damage: Callable[[str, NDArray[np.float32]], NDArray[np.float32]] = lambda name, value: value,
) -> list[TensorError]:
    reader = TARGET.reader(path)
    checking = WeightCheck(source, reader)
    for name, value in reader.weights(source).items():
        checking(name, damage(name, value))
    return checking.errors


@pytest.mark.parametrize("type", ["F32", "BF16", "Q8_0", "Q6_K", "Q5_0", "Q4_0", "Q4_K_M", "Q2_K"])
def test_no_false_alarm(source: Checkpoint, tiny_gguf: Callable[..., Path], type: str) -> None:
    found = errors(source, tiny_gguf(type))
    assert len(found) == len(source.tensors)
    for error in found:
        assert error.ok, error
        assert error.error <= error.worst_row < 0.75 * error.limit


def test_transposed_tensors(
    tiny_model: Callable[..., Path], tiny_gguf: Callable[..., Path]
) -> None:
    source = open_checkpoint(tiny_model("gpt2"))
    assert any(tensor.transposed for tensor in source.tensors)
    assert all(error.ok for error in errors(source, tiny_gguf("Q4_0", "gpt2")))


def swapped(value: NDArray[np.float32]) -> NDArray[np.float32]:
    order = np.arange(len(value))
    order[[3, 4]] = [4, 3]
    return value[order]


def poisoned(value: NDArray[np.float32]) -> NDArray[np.float32]:
    value = value.copy()
    value.flat[7] = np.nan
    return value


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        (Q, swapped),
        (Q, lambda value: np.roll(value, 1, axis=0)),
        (Q, lambda value: np.zeros_like(value)),
        (Q, lambda value: 2 * value),
        (Q, lambda value: -value),
        (Q, poisoned),
        (NORM, np.ones_like),
        (NORM, lambda value: value + np.float32(1)),
        (NORM, lambda value: value * np.float32(1.02)),
    ],
)
@pytest.mark.parametrize("type", ["Q8_0", "Q4_0"])
def test_a_fault_in_one_tensor_is_found_there(
    source: Checkpoint,
    tiny_gguf: Callable[..., Path],
    type: str,
    name: str,
    fault: Callable[[NDArray[np.float32]], NDArray[np.float32]],
) -> None:
    found = errors(
        source, tiny_gguf(type), lambda one, value: fault(value) if one == name else value
    )
    assert [error.name for error in found if not error.ok] == [name]


@pytest.fixture(scope="module")
def folded(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], tuple[Checkpoint, Path]]:
    """`folded("llama", "smoothquant") -> (source, folder)`, each made once."""
    place = tmp_path_factory.mktemp("folded")

    def build(family: str, method: str) -> tuple[Checkpoint, Path]:
        out, source = place / f"{family}-{method}", open_checkpoint(tiny_model(family))
        if not out.exists():
            asked = Asked(method=method, calib_rows=4, calib_length=64)
            convert(source.folder, "vllm", type="w8a8", out=out, threads=1, asked=asked)
        return source, out

    return build


def checking(
    source: Checkpoint,
    out: Path,
    damage: Callable[[str, NDArray[np.float32]], NDArray[np.float32]] = lambda name, value: value,
) -> WeightCheck:
    reader = target_named("vllm").reader(out)
    found = WeightCheck(source, reader)
    for name, value in reader.weights(source).items():
        found(name, damage(name, value))
    return found


def test_blocks_in_the_other_order_are_no_rotation(
    folded: Callable[..., tuple[Checkpoint, Path]],
) -> None:
    """Most tensors are far off and all norms are others, as after one; but no norm is level."""
    source, path = folded("llama", "rtn")
    reader = target_named("vllm").reader(path)
    weights, found = reader.weights(source), WeightCheck(source, reader)
    other = {"layers.0.": "layers.1.", "layers.1.": "layers.0."}
    for name in weights:
        block = next((part for part in other if part in name), "")
        found(name, weights[name.replace(block, other[block]) if block else name])
    assert found.note == ""
    assert {one.culprit for one in found.findings} >= {Q, Q.replace("layers.0", "layers.1")}


@pytest.mark.parametrize(
    ("family", "method", "note"),
    [
        ("llama", "smoothquant", UP_TO_SCALE),
        ("gemma3_text", "smoothquant", UP_TO_SCALE),
        ("llama", "quarot", NOT_COMPARED),
        ("llama", "rtn", ""),
    ],
)
def test_folded_scales_are_no_fault(
    folded: Callable[..., tuple[Checkpoint, Path]], family: str, method: str, note: str
) -> None:
    found = checking(*folded(family, method))
    assert found.note == note
    assert [error for error in found.errors if not error.ok] == []
    assert (found.errors == []) == (note == NOT_COMPARED)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        (Q, swapped),
        (Q, lambda value: np.roll(value, 1, axis=0)),
        (Q, lambda value: np.zeros_like(value)),
        (Q, poisoned),
        ("model.layers.0.self_attn.o_proj.weight", swapped),
        ("model.layers.0.mlp.down_proj.weight", lambda value: np.roll(value, 1, axis=1)),
        (NORM, np.ones_like),
    ],
)
def test_a_fault_beside_folded_scales_is_found(
    folded: Callable[..., tuple[Checkpoint, Path]],
    name: str,
    fault: Callable[[NDArray[np.float32]], NDArray[np.float32]],
) -> None:
    source, out = folded("llama", "smoothquant")
    found = checking(source, out, lambda one, value: fault(value) if one == name else value)
    assert [error.name for error in found.errors if not error.ok] == [name]


def test_a_tied_head_stands_for_the_embedding(
    tiny_model: Callable[..., Path], tiny_gguf: Callable[..., Path]
) -> None:
    source = open_checkpoint(tiny_model("gemma3_text"))
    checking = WeightCheck(source, TARGET.reader(tiny_gguf("Q8_0", "gemma3_text")))
    table = next(tensor for tensor in source.tensors if tensor.role == "embedding")
    values = source.rows(table, 0, table.shape[0])
    checking("lm_head.weight", values)
    checking("lm_head.weight", np.roll(values, 1, axis=0))
    assert [error.ok for error in checking.errors] == [True, False]


def test_a_linear_that_is_too_large_beside_folded_scales_is_found(
    folded: Callable[..., tuple[Checkpoint, Path]],
) -> None:
    source, out = folded("llama", "smoothquant")
    assert checking(source, out).findings == []
    found = checking(source, out, lambda one, value: 1.2 * value if one == Q else value).findings
    assert [one.culprit for one in found] == [Q]
    assert "times what its norm makes expected" in found[0].problem
