"""Small faults, within the limits of a tensor's bits, stand out beside the tensors like it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from qconvert.asked import Asked
from qconvert.checkpoint import Checkpoint, open_checkpoint
from qconvert.formats.target import target_named
from qconvert.pipeline import convert
from qconvert.runtimes.findings import Finding
from qconvert.runtimes.weights import WeightCheck

Floats = NDArray[np.float32]
UP = "model.layers.1.mlp.up_proj.weight"
FAMILIES = ("llama", "qwen2", "qwen3", "gemma3_text", "phi3", "gpt_neox", "gpt2")


def findings(
    source: Checkpoint,
    path: Path,
    target: str = "gguf",
    damage: Callable[[str, Floats], Floats] = lambda name, value: value,
) -> list[Finding]:
    reader = target_named(target).reader(path)
    checking = WeightCheck(source, reader)
    for name, value in reader.weights(source).items():
        checking(name, damage(name, value))
    return checking.findings


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("type", ["Q4_0", "Q8_0"])
def test_no_family_gives_a_false_alarm(
    family: str, type: str, tiny_model: Callable[..., Path], tiny_gguf: Callable[..., Path]
) -> None:
    source = open_checkpoint(tiny_model(family))
    assert findings(source, tiny_gguf(type, family)) == []


@pytest.mark.parametrize("type", ["BF16", "Q6_K", "Q5_K_M", "IQ4_XS", "Q3_K_M", "Q2_K"])
def test_no_type_gives_a_false_alarm(
    type: str, source: Checkpoint, tiny_gguf: Callable[..., Path]
) -> None:
    assert findings(source, tiny_gguf(type)) == []


@pytest.mark.parametrize(
    ("target", "type", "method"),
    [
        ("vllm", "w4a16-g64", "rtn"),
        ("vllm", "w4a16-g64-asym", "gptq"),
        ("vllm", "w4a16-g64", "awq"),
        ("vllm", "w4a16-g64-asym", "best"),
        ("vllm", "w8a8", "smoothquant"),
        ("vllm", "fp8", "rtn"),
        ("onnx", "int4", "rtn"),
        ("mlc", "q4f16_1", "rtn"),
        ("mlc", "q3f16_1", "rtn"),
    ],
)
def test_no_method_gives_a_false_alarm(
    target: str, type: str, method: str, source: Checkpoint, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    asked = Asked(method=method, calib_rows=4, calib_length=64)
    convert(source.folder, target, type=type, out=out, threads=1, asked=asked)
    assert findings(source, out, target) == []


def moved_a_level(share: float) -> Callable[[Floats], Floats]:
    """Some values have the next level of their block of 32 in place of their own."""

    def change(value: Floats) -> Floats:
        blocks = value.reshape(-1, 32)
        levels = np.sort(blocks, -1)
        gaps = np.diff(levels, axis=-1)
        step = np.where(gaps > 1e-3 * np.abs(blocks).max(-1, keepdims=True), gaps, np.inf).min(-1)
        picked = np.random.default_rng(0).random(blocks.shape) < share
        return np.asarray((blocks + picked * step[:, None]).reshape(value.shape), np.float32)

    return change


def one_group(value: Floats) -> Floats:
    found = value.copy()
    found[40, 64:96] *= 2
    return found


def one_row(value: Floats) -> Floats:
    found = value.copy()
    found[40] *= np.float32(1.4)
    return found


def a_level_more(value: Floats) -> Floats:
    return moved_a_level(2.0)(value)


def flushed(value: Floats) -> Floats:
    blocks = value.reshape(-1, 32).copy()
    largest = np.abs(blocks).max(-1)
    blocks[largest < np.quantile(largest, 0.1)] = 0
    return blocks.reshape(value.shape)


FAULTS: dict[str, tuple[Callable[[Floats], Floats], str]] = {
    "1 %": (lambda value: value * np.float32(1.01), "is 1.01"),
    "2 %": (lambda value: value * np.float32(0.98), "is 0.98"),
    "5 %": (lambda value: value * np.float32(1.05), "is 1.05"),
    "codes 1 %": (moved_a_level(0.01), "has wrong codes"),
    "codes 5 %": (moved_a_level(0.05), "has wrong codes"),
    "zero point": (a_level_more, "has wrong zero points"),
    "group": (one_group, "columns 64 to 79 of row 40"),
    "row": (one_row, "a factor of its own would mend each of 1 rows"),
    "flushed": (flushed, "of its groups of 16 columns in a row"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_small_fault_is_found(
    fault: str, source: Checkpoint, tiny_gguf: Callable[..., Path]
) -> None:
    change, words = FAULTS[fault]
    found = findings(
        source,
        tiny_gguf("Q4_0"),
        damage=lambda name, value: change(value) if name == UP else value,
    )
    assert [(one.stage, one.culprit) for one in found] == [("bytes", UP)]
    assert words in found[0].problem
