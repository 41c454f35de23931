"""Faults in single tensors are found; what rounding does to them is not taken for one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from qconvert.checkpoint import Checkpoint, open_checkpoint
from qconvert.formats.gguf.target import TARGET
from qconvert.runtimes.weights import TensorError, WeightCheck

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
