"""MLC's group quantizations, as data.

Source: mlc-ai/mlc-llm 79d603f, `python/mlc_llm/quantization/{quantization,group_quantization}.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from qconvert.formats.grid import Grid
from qconvert.formats.integer import IntegerGrid
from qconvert.formats.mlc.grids import AbsmaxGrid, ModelDtype

EXACT: Mapping[ModelDtype, str] = {
    "float16": "portable", "float32": "portable", "bfloat16": "portable5",
}  # fmt: skip
"""Kind of scale whose product with any code is exact where a model of this dtype decodes."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a whole model is stored: one choice for all its linears."""

    name: str
    bits: int  # 0: not quantized
    group: int  # columns of a row that share a scale; 0: not quantized
    dtype: ModelDtype  # of scales, norms, biases, and of what is not quantized
    layout: Literal["NK", "KN"] = "NK"  # of linears and the head; the embedding is always NK
    ends: bool = True  # whether embedding and head are quantized, too

    @property
    def quantizes(self) -> bool:
        return self.bits > 0

    @property
    def per_word(self) -> int:
        """Codes in a word of 32 bits: 8 of 4 bits, 10 of 3."""
        return 32 // self.bits

    @property
    def middle(self) -> int:
        """The stored code that stands for 0."""
        return (1 << (self.bits - 1)) - 1

    @property
    def top(self) -> int:
        """The largest code that fits; MLC's own quantizer never writes it, its decoder takes it."""
        return (1 << self.bits) - 1

    def groups(self, cols: int) -> int:
        return -(-cols // self.group)

    def words(self, cols: int) -> int:
        """Words of a row: of whole groups, the last one padded."""
        return self.groups(cols) * self.group // self.per_word

    def grid(self, *, compatible: bool) -> Grid:
        """What weights are fitted to; `compatible`: MLC's own rule. Of a scheme that quantizes."""
        if compatible:
            return AbsmaxGrid(self.bits, self.group, self.dtype)
        return IntegerGrid(self.bits, self.group, True, EXACT[self.dtype])

    @property
    def summary(self) -> str:
        if not self.quantizes:
            return f"not quantized, {self.dtype}"
        parts = [f"{self.bits} bits, groups of {self.group}, decoded in {self.dtype}"]
        parts += [] if self.layout == "NK" else ["linears transposed"]
        parts += [] if self.ends else ["embedding and head not quantized"]
        return ", ".join(parts)


SCHEMES: Mapping[str, Scheme] = {
    one.name: one
    for one in (
        Scheme("q4f16_1", 4, 32, "float16"),
        Scheme("q4f16_2", 4, 32, "float16", ends=False),
        Scheme("q4f16_0", 4, 32, "float16", "KN"),
        Scheme("q4f32_1", 4, 32, "float32"),
        Scheme("q4bf16_1", 4, 32, "bfloat16"),
        Scheme("q3f16_1", 3, 40, "float16"),
        Scheme("q3f16_0", 3, 40, "float16", "KN"),
        Scheme("q0f16", 0, 0, "float16"),
    )
}

BY_BITS: Mapping[int, str] = {4: "q4f16_1", 3: "q3f16_1", 16: "q0f16"}
"""What `--bits` means, the first where nothing is asked."""

NOT_MADE: Mapping[str, str] = {
    "q4bf16_0": "q4bf16_1",
    "q0bf16": "q0f16",
    "q0f32": "q0f16",
    "q4f16_autoawq": "q4f16_1",
    "q4f16_ft": "q4f16_1",
    "e4m3_e4m3_f16": "q4f16_1",
    "e5m2_e5m2_f16": "q4f16_1",
}
"""Schemes of MLC that are not written here -> the nearest that is."""
