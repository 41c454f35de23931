"""MLC's own rule of rounding, as a grid: what `mlc_llm convert_weight` writes, to the bit.

Source: mlc-ai/mlc-llm 79d603f, `quantization/group_quantization.py` `GroupQuantize._quantize`, and
how TVM computes it on a CPU: float16 rounds after every step; bfloat16 is computed in float32 and
rounded only where a tensor is stored, which the scale is and the quotient is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.grid import Lines, ScaleOverflow
from qconvert.formats.nearest import nearest_codes
from qconvert.formats.tensor import QuantizedTensor
from qconvert.kernels.searches import (
    Fit,
    Symmetric,
)

ModelDtype = Literal["float16", "bfloat16", "float32"]
Floats = NDArray[np.float32]


def bfloat16(values: Floats) -> Floats:
    """The nearest bfloat16 values, ties to even, as float32."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    kept: Floats = ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
    return kept


def rounded(values: Floats, dtype: ModelDtype) -> Floats:
    """`values` as a tensor of `dtype` holds them, in float32."""
    if dtype == "float32":
        return values
    if dtype == "bfloat16":
        return bfloat16(values)
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float32)


@dataclass(frozen=True, slots=True)
class AbsmaxGrid:
    """Satisfies `qconvert.formats.grid.Grid`. Codes 0..2M, M = 2^(bits-1) - 1, stand for
    (code - M) * scale, the product rounded to the model dtype as MLC's decoder rounds it; the scale
    is max|w| / M of its group and never negative. The last group of a row may be shorter.

    Parameters: "d" [rows, groups], float32 that hold what the file holds. `convert_weight` stores
    float32 scales as bfloat16, after it has chosen the codes by the whole scale; so does this.
    """

    bits: int
    group: int
    dtype: ModelDtype

    @property
    def name(self) -> str:
        """ "mlc4_g32_float16" """
        return f"mlc{self.bits}_g{self.group}_{self.dtype}"

    @property
    def block(self) -> int:
        return self.group

    @property
    def bits_per_weight(self) -> float:
        return self.bits + 16 / self.group

    @property
    def middle(self) -> int:
        return (1 << (self.bits - 1)) - 1

    @property
    def levels(self) -> Floats:
        return np.arange(-self.middle, self.middle + 1, dtype=np.float32)

    @property
    def has_offset(self) -> bool:
        return False

    @property
    def together(self) -> int:
        return 1

    @property
    def search(self) -> Fit:
        """Scales as this grid has them are among those that it could search, if it searched."""
        return Symmetric(self.group, -self.middle, self.middle, (float(self.middle),))

    def quantize(
        self, w: Floats, weight: Floats | None = None, *, threads: int = 1
    ) -> QuantizedTensor:
        """MLC's rule; `weight` plays no part in it."""
        w = rounded(w, self.dtype)
        if not np.isfinite(w).all():
            raise ScaleOverflow(f"{self.name}: a weight is beyond {self.dtype}")
        middle = np.float32(self.middle)
        scale = rounded(_largest(w, self.group) / middle, self.dtype)
        with np.errstate(divide="ignore", invalid="ignore"):
            scaled = w / _spread(scale, self.group, w.shape[1])
        if self.dtype == "float16":
            scaled = rounded(rounded(scaled, self.dtype) + middle, self.dtype)
        else:
            scaled = scaled + middle
        # 0 / 0 of a group of zeros is no number, and becomes code 0
        codes = np.nan_to_num(np.clip(np.rint(scaled), 0, 2 * middle), nan=0.0).astype(np.uint8)
        return QuantizedTensor(self.name, codes, {"d": self._stored(scale)})

    def place(self, w: Floats, lines: Lines, *, threads: int = 1) -> QuantizedTensor:
        """The stored scales nearest to the wanted ones, then the nearest codes."""
        scale = self._stored(rounded(np.abs(lines.scale), self.dtype))
        wide = Lines(_spread(scale, self.group, w.shape[1]), None)
        codes = nearest_codes(w, wide, self.levels, threads=threads)
        return QuantizedTensor(self.name, codes, {"d": scale})

    def lines(self, tensor: QuantizedTensor) -> Lines:
        return Lines(tensor.params["d"].astype(np.float32), None)

    def decode(self, tensor: QuantizedTensor) -> Floats:
        scale = _spread(self.lines(tensor).scale, self.group, tensor.shape[1])
        return rounded(self.levels[tensor.codes] * scale, self.dtype)

    def row_bytes(self, cols: int) -> int:
        return cols + 4 * -(-cols // self.group)

    def pack(self, tensor: QuantizedTensor) -> NDArray[np.uint8]:
        """Of each row: a byte per code, then the scales as float32."""
        scale = np.ascontiguousarray(tensor.params["d"], "<f4").view(np.uint8)
        return np.concatenate([tensor.codes, scale.reshape(tensor.shape[0], -1)], axis=1)

    def unpack(self, packed: NDArray[np.uint8], cols: int) -> QuantizedTensor:
        scale: NDArray[Any] = np.ascontiguousarray(packed[:, cols:]).view("<f4")
        return QuantizedTensor(self.name, packed[:, :cols].copy(), {"d": scale})

    def _stored(self, scale: Floats) -> Floats:
        if not np.isfinite(scale).all():
            raise ScaleOverflow(f"{self.name}: a scale is beyond {self.dtype}")
        return bfloat16(scale) if self.dtype == "float32" else scale


def _largest(w: Floats, group: int) -> Floats:
    """[rows, cols] -> [rows, groups], magnitudes."""
    starts = np.arange(0, w.shape[1], group)
    found: Floats = np.maximum.reduceat(np.abs(w), starts, axis=1)
    return found


def _spread(scale: Floats, group: int, cols: int) -> Floats:
    """[rows, groups] -> [rows, cols]"""
    return np.repeat(scale, group, axis=1)[:, :cols]


GRIDS: Mapping[str, AbsmaxGrid] = {
    grid.name: grid
    for bits, group in ((4, 32), (3, 40))
    for dtype in ("float16", "bfloat16", "float32")
    for grid in (AbsmaxGrid(bits, group, dtype),)
}
