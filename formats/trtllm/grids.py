"""NVIDIA ModelOpt's own rules of rounding, as grids: what its exports hold, to the bit.

Source: nvidia-modelopt 0.47.0, `torch/export/quant_utils.py` (`get_scaling_factor`,
`to_quantized_weight`, `pack_int4_in_uint8`), `torch/quantization/qtensor/*_tensor.py`: the
largest magnitude lies on the largest level, quotients are divided and never multiplied by an
inverse, halves go to the even level, and zeros keep the sign of what was rounded. Weights are in
the model's own type, bfloat16 or float16; only FP8 with one scale for a tensor is divided in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.grid import Grid, Lines, ScaleOverflow
from qconvert.formats.minifloat import BindableGrid, MiniFloatGrid
from qconvert.formats.multipliers import Float8, Plain, Shared
from qconvert.formats.nearest import nearest_codes, on_lines
from qconvert.formats.tensor import QuantizedTensor
from qconvert.formats.trtllm.signed import Signed
from qconvert.kernels.minifloat import E2M1, E4M3
from qconvert.kernels.searches import (
    Fit,
    Symmetric,
)

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class AbsmaxIntegers:
    """Satisfies `qconvert.formats.grid.Grid`. Codes count from 0 for -2^(bits-1), the scale is
    max|w| / (2^(bits-1) - 1) of its group, so that the lowest level is never used; 1 where a group
    is all zeros. Rows are whole groups.

    Parameters: "d" float32 [rows, groups].
    """

    name: str
    bits: int
    group: int  # 0: the whole row

    @property
    def block(self) -> int:
        return self.group

    @property
    def bits_per_weight(self) -> float:
        return self.bits + (32 / self.group if self.group else 0)

    @property
    def top(self) -> int:
        return (1 << (self.bits - 1)) - 1

    @property
    def levels(self) -> Floats:
        return np.arange(-self.top - 1, self.top + 1, dtype=np.float32)

    @property
    def has_offset(self) -> bool:
        return False

    @property
    def together(self) -> int:
        return 1

    @property
    def search(self) -> Fit:
        """Scales as this grid has them are among those that it could search, if it searched."""
        return Symmetric(self.group, -self.top - 1, self.top, (float(self.top),))

    def quantize(
        self, w: Floats, weight: Floats | None = None, *, threads: int = 1
    ) -> QuantizedTensor:
        """ModelOpt's rule; `weight` plays no part in it."""
        grouped = w.reshape(len(w), -1, self.group or w.shape[1])
        scale = np.abs(grouped).max(-1) / np.float32(self.top)
        if not np.isfinite(scale).all():
            raise ScaleOverflow(f"{self.name}: a weight is not finite")
        scale = np.where(scale > 0, scale, np.float32(1))
        found = np.clip(np.rint(grouped / scale[..., None]), -self.top - 1, self.top)
        codes = (found + np.float32(self.top + 1)).astype(np.uint8)
        return QuantizedTensor(self.name, codes.reshape(w.shape), {"d": scale})

    def place(self, w: Floats, lines: Lines, *, threads: int = 1) -> QuantizedTensor:
        """The wanted scales, then the nearest codes."""
        codes = nearest_codes(w, lines, self.levels, threads=threads)
        return QuantizedTensor(self.name, codes, {"d": lines.scale.astype(np.float32)})

    def lines(self, tensor: QuantizedTensor) -> Lines:
        return Lines(tensor.params["d"].astype(np.float32), None)

    def decode(self, tensor: QuantizedTensor) -> Floats:
        return on_lines(tensor.codes, self.lines(tensor), self.levels)

    def row_bytes(self, cols: int) -> int:
        return cols + 4 * (cols // (self.group or cols))

    def pack(self, tensor: QuantizedTensor) -> NDArray[np.uint8]:
        """Of each row: a byte per code, then the scales as float32."""
        scale = np.ascontiguousarray(tensor.params["d"], "<f4").view(np.uint8)
        return np.concatenate([tensor.codes, scale.reshape(tensor.shape[0], -1)], axis=1)

    def unpack(self, packed: NDArray[np.uint8], cols: int) -> QuantizedTensor:
        scale: NDArray[Any] = np.ascontiguousarray(packed[:, cols:]).view("<f4")
        return QuantizedTensor(self.name, packed[:, :cols].copy(), {"d": scale})


CAST = Signed(E4M3)
"""A cast of float32 to e4m3, which keeps the sign of every zero."""
TABLE = Signed(E2M1, negative_zero=False)
"""Looked up in a table, by magnitude; the sign is that of what is below zero."""

GRIDS: Mapping[str, Grid] = {
    grid.name: grid
    for grid in (
        AbsmaxIntegers("modelopt_int4_g128", 4, 128),
        AbsmaxIntegers("modelopt_int4_g64", 4, 64),
        AbsmaxIntegers("modelopt_int8_channel", 8, 0),
        MiniFloatGrid("modelopt_fp8_channel", CAST, Plain(0, steps=())),
        MiniFloatGrid("modelopt_fp8_block128", CAST, Plain(128, together=128, steps=()), 128),
        BindableGrid("modelopt_fp8_tensor_bf16", Signed(E4M3, "BF16"), Shared(E4M3.top)),
        BindableGrid("modelopt_fp8_tensor_f16", Signed(E4M3, "F16"), Shared(E4M3.top)),
        BindableGrid("modelopt_nvfp4", TABLE, Float8(16, steps=()), 16),
    )
}
