"""MLC's quantizations as a reader sees them: written from MLC's, apart from what the writer knows.

Source: mlc-ai/mlc-llm 79d603f, `python/mlc_llm/quantization/{quantization,group_quantization}.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a folder stores its matrices."""

    dtype: str  # of scales, norms, biases and plain matrices; codes are decoded in it
    bits: int = 0  # of a code; 0: plain matrices
    group: int = 0  # columns of a row that share a scale
    transposed: bool = False  # linears are [in, out], and so are their codes and scales
    plain_ends: bool = False  # embedding and head are plain

    @property
    def per_word(self) -> int:
        """Codes in 32 bits, the first in the lowest."""
        return 32 // self.bits

    @property
    def middle(self) -> int:
        """The code that means zero."""
        return (1 << (self.bits - 1)) - 1

    @property
    def mask(self) -> int:
        return (1 << self.bits) - 1

    def groups(self, columns: int) -> int:
        """Of a row; the last may lie beyond its end in part."""
        return -(-columns // self.group)

    def words(self, columns: int) -> int:
        return self.groups(columns) * self.group // self.per_word


SCHEMES: Mapping[str, Scheme] = {
    "q3f16_0": Scheme("float16", 3, 40, transposed=True),
    "q3f16_1": Scheme("float16", 3, 40),
    "q4f16_0": Scheme("float16", 4, 32, transposed=True),
    "q4f16_1": Scheme("float16", 4, 32),
    "q4f16_2": Scheme("float16", 4, 32, plain_ends=True),
    "q4f32_1": Scheme("float32", 4, 32),
    "q4bf16_0": Scheme("bfloat16", 4, 32, transposed=True),
    "q4bf16_1": Scheme("bfloat16", 4, 32),
    "q0f16": Scheme("float16"),
    "q0bf16": Scheme("bfloat16"),
    "q0f32": Scheme("float32"),
}
