"""MLC folders, as our reader reads them, and one word of each width by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qconvert.formats.mlc.target import TARGET
from qconvert.runtimes.second.mlc import _decoded

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True}, "mistral": {}, "qwen2": {}, "qwen3": {}, "gemma": {},
    "gemma2": {}, "gemma3_text": {},
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_read_as_we_read_it(family: str, output: Callable[..., Any]) -> None:
    output("mlc", "q4f16_1", family, **FAMILIES[family]).check()


@pytest.mark.parametrize("type", [name for name, _ in TARGET.types])
def test_every_type_is_read_as_we_read_it(type: str, output: Callable[..., Any]) -> None:
    """An MLP of 500 does not fill the last group of its rows."""
    output("mlc", type, dtype="bfloat16", intermediate_size=500).check()


def test_words_of_4_bits() -> None:
    """7 stands for 0; the lowest bits are the first column; what fills up is cut off."""
    words = np.array([[0x89ABCDE7, 0]], np.uint32)
    found = _decoded(words, np.array([[2.0]], np.float32), 4, "f16", 5)
    assert found.tolist() == [[0.0, 14.0, 12.0, 10.0, 8.0]]


def test_words_of_3_bits() -> None:
    """Ten codes in a word, the two highest bits unused; 3 stands for 0."""
    word = sum(code << (3 * place) for place, code in enumerate([3, 4, 5, 6, 0, 1, 2, 3, 3, 6]))
    found = _decoded(np.array([[word]], np.uint32), np.array([[1.0]], np.float32), 3, "f32", 10)
    assert found.tolist() == [[0, 1, 2, 3, -3, -2, -1, 0, 0, 3]]


def test_values_are_rounded_to_the_type_of_the_model() -> None:
    scale = np.array([[1 + 2.0**-7]], np.float32)
    word = np.array([[0xF]], np.uint32)  # 15 - 7 = 8, and 3 is exact nowhere below 9 bits
    three = np.array([[0xA]], np.uint32)
    assert _decoded(word, scale, 4, "bf16", 1).tolist() == [[8 + 2.0**-4]]
    assert _decoded(three, scale, 4, "bf16", 1).tolist() == [[3.03125]]
    assert _decoded(three, scale, 4, "f32", 1).tolist() == [[3.0234375]]
