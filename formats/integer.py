"""Integer grids: whole levels of 2 to 8 bits, one scale (and whole zero point) a group or a row.

They are what vLLM, MLC, ONNX Runtime and TensorRT-LLM compute with; each of those packs the codes
in its own way. `pack` here is neutral, for what lies between: one byte a code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.grid import Lines, ScaleOverflow
from qconvert.formats.nearest import inverse, nearest_codes, on_lines
from qconvert.formats.ragged import cut, filled
from qconvert.formats.tensor import QuantizedTensor
from qconvert.kernels.bodies import Body
from qconvert.kernels.fit import fit
from qconvert.kernels.scales import SHORTENED, stored
from qconvert.kernels.searches import (
    Fit,
    Symmetric,
    ZeroPoint,
)

Floats = NDArray[np.float32]

# Where the searches start. The first are multiples of the steps that just cover a group: small
# groups want nearly all of their range, long ones with outliers much less. The second say how much
# of what is then cut off is cut off below zero. Chosen by the error that is left.
_STRETCHES = (0.85, 0.92, 0.97, 1.0, 1.03, 1.07, 1.12, 1.18, 1.26, 1.36, 1.5, 1.7, 2.0, 2.4)
_CUT_BELOW = (0.0, 0.25, 0.5, 0.75, 1.0)
# With many steps it also matters where a group begins between two: these starts are in steps, and
# left out where they are more than a twentieth of all.
_STEPS = (-4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.5, 1.0)
_SCALES: Mapping[str, tuple[str, int, float, type]] = {
    "float16": ("", 2, 65504.0, np.float16),
    "bfloat16": ("_bf16", 2, float(np.finfo(np.float32).max), np.float32),
    "float32": ("_f32", 4, float(np.finfo(np.float32).max), np.float32),
    "portable": ("_portable", 2, 65280.0, np.float16),
    "portable5": ("_portable5", 2, 63488.0, np.float16),
}  # what a scale is stored as -> ending of the grid's name, bytes, largest value, kept as


@dataclass(frozen=True, slots=True)
class IntegerGrid:
    """Satisfies `qconvert.formats.grid.Grid`; codes count from 0.

    symmetric: scale * (code - 2^(bits-1)), the scale of either sign, so that the largest element
    can lie on the lowest level. Parameters: "d" [rows, groups].
    asymmetric: scale * (code - zero), zero a whole number 0..2^bits - 1, the scale not negative.
    Parameters: "d", and "zero" uint8 [rows, groups].

    Scales are kept as float16, or as float32 that hold what is stored exactly: bfloat16 has no
    numpy type, and of float32 sixteen significant bits are used (see `kernels.scales.SHORTENED`).
    Portable scales are float16 that bfloat16 holds exactly too, so that one set of codes serves
    files with either; they leave 0.01 to 0.03 % more squared error at 4 bits, as bfloat16 does.
    Those of "portable5" have five significant bits, so that a runtime may also multiply in bfloat16
    (or float16): values of symmetric grids of up to 4 bits are exact there. About 1.5 % more error.

    The length of a row need not be a multiple of the group: the last group is shorter then.
    """

    bits: int  # 2..8
    group: int  # columns; 0: the whole row
    symmetric: bool = True
    scale: str = "float16"  # what scales are stored as: one of _SCALES

    def __post_init__(self) -> None:
        if not (2 <= self.bits <= 8 and self.group >= 0 and self.scale in _SCALES):
            raise ValueError(f"no such grid: {self!r}")

    @property
    def name(self) -> str:
        """ "int4_g128", "int4_g128_asym", "int8_channel_bf16" """
        span = f"g{self.group}" if self.group else "channel"
        return f"int{self.bits}_{span}{'' if self.symmetric else '_asym'}{_SCALES[self.scale][0]}"

    @property
    def block(self) -> int:
        return self.group

    @property
    def bits_per_weight(self) -> float:
        """Of codes, scales and zero points, as tightly as a target can pack them."""
        extra = 8 * _SCALES[self.scale][1] + (0 if self.symmetric else self.bits)
        return self.bits + (extra / self.group if self.group else 0)

    @property
    def levels(self) -> Floats:
        return self.search.levels

    @property
    def has_offset(self) -> bool:
        return not self.symmetric

    @property
    def together(self) -> int:
        return 1

    @property
    def search(self) -> Fit:
        """Of `size` 0 where a row is one group."""
        half = 1 << (self.bits - 1)
        near = (1 + step / (2 * half) for step in _STEPS if abs(step) < half / 10)
        stretches = (*_STRETCHES, *near)
        if self.symmetric:
            anchors = tuple(sign * half * by for by in stretches for sign in (-1.0, 1.0))
            return Symmetric(self.group, -half, half - 1, anchors, scale=self.scale)
        top = 2 * half - 1
        cuts = tuple(top * (by - 1) for by in stretches)
        spans = tuple((cut, -below * cut) for cut in cuts for below in _CUT_BELOW)
        return ZeroPoint(self.group, top, spans, scale=self.scale)

    def quantize(
        self,
        w: Floats,
        weight: Floats | None = None,
        *,
        threads: int = 1,
        body: Body = "cpu",
    ) -> QuantizedTensor:
        """Weighted least squares onto this grid; `ScaleOverflow` where a scale is too large."""
        search: Any = self.search
        whole = filled(w, self.group)
        weight = None if weight is None else filled(weight, self.group, weight.mean())
        search = replace(search, size=self.group or w.shape[1])
        codes, found = fit(whole, weight, search, threads=threads, body=body)
        return cut(QuantizedTensor(self.name, codes, self.stored(found)), w.shape[1])

    def place(self, w: Floats, lines: Lines, *, threads: int = 1) -> QuantizedTensor:
        """Stored scales and whole zero points nearest to the wanted `lines`, then nearest codes.

        A line that cannot pass through zero starts (or ends) there, and keeps its other end.
        """
        params = self._nearest(lines)
        lines = self._lines(params)
        codes = nearest_codes(filled(w, self.group), lines, self.levels, threads=threads)
        return cut(QuantizedTensor(self.name, codes, params), w.shape[1])

    def lines(self, tensor: QuantizedTensor) -> Lines:
        return self._lines(tensor.params)

    def decode(self, tensor: QuantizedTensor) -> Floats:
        # exact: scale * (code - zero) to the bit, in whatever order it is computed
        values = on_lines(filled(tensor.codes, self.group), self.lines(tensor), self.levels)
        return np.ascontiguousarray(values[:, : tensor.codes.shape[1]])

    def row_bytes(self, cols: int) -> int:
        return cols + self._groups(cols) * (_SCALES[self.scale][1] + (not self.symmetric))

    def pack(self, tensor: QuantizedTensor) -> NDArray[np.uint8]:
        """Of each row: a byte per code, the scales (little-endian), a byte per zero point."""
        parts = [tensor.codes, self._scale_bytes(tensor.params["d"])]
        if not self.symmetric:
            parts.append(tensor.params["zero"].astype(np.uint8))
        return np.concatenate(parts, axis=1)

    def unpack(self, packed: NDArray[np.uint8], cols: int) -> QuantizedTensor:
        end = cols + self._groups(cols) * _SCALES[self.scale][1]
        params: dict[str, NDArray[Any]] = {"d": self._scales(packed[:, cols:end])}
        if not self.symmetric:
            params["zero"] = packed[:, end:].copy()
        return QuantizedTensor(self.name, packed[:, :cols].copy(), params)

    def _groups(self, cols: int) -> int:
        return -(-cols // self.group) if self.group else 1

    def stored(self, found: Mapping[str, Floats]) -> dict[str, NDArray[Any]]:
        """What the search found, as a tensor keeps it; `ScaleOverflow` where a scale is too large
        for what it is stored as."""
        return self._params(found["d"], found.get("zero"))

    def _params(self, scale: Floats, zero: Floats | None) -> dict[str, NDArray[Any]]:
        if not (np.abs(scale) <= _SCALES[self.scale][2]).all():
            raise ScaleOverflow(f"{self.name}: a scale is beyond {self.scale}")
        kept: NDArray[Any] = scale.astype(_SCALES[self.scale][3])
        return {"d": kept} if zero is None else {"d": kept, "zero": zero.astype(np.uint8)}

    def _lines(self, params: Mapping[str, NDArray[Any]]) -> Lines:
        scale = params["d"].astype(np.float32)
        return Lines(scale, None if self.symmetric else -(scale * params["zero"]))

    def _nearest(self, lines: Lines) -> dict[str, NDArray[Any]]:
        shortened = SHORTENED[self.scale]
        if lines.offset is None:
            return self._params(stored(lines.scale, shortened), None)
        top = self.levels[-1]
        low = lines.offset
        high = np.maximum(low + np.maximum(lines.scale, 0) * top, low)
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        scale = stored((high - low) / top, shortened)
        return self._params(scale, np.clip(np.rint(-low * inverse(scale)), 0, top))

    def _scale_bytes(self, scale: NDArray[Any]) -> NDArray[np.uint8]:
        """[rows, groups] -> [rows, bytes]"""
        size = _SCALES[self.scale][1]
        rows = scale.shape[0]
        parts = np.ascontiguousarray(scale).view(np.uint8).reshape(rows, -1, scale.dtype.itemsize)
        return parts[..., -size:].reshape(rows, -1)  # of bfloat16, the upper half of a float32

    def _scales(self, part: NDArray[np.uint8]) -> NDArray[Any]:
        size = _SCALES[self.scale][1]
        rows = part.shape[0]
        kind = np.dtype(_SCALES[self.scale][3])
        whole = np.zeros((rows, part.shape[1] // size, kind.itemsize), np.uint8)
        whole[..., -size:] = part.reshape(rows, -1, size)
        return whole.view(kind)[..., 0]


GRIDS: Mapping[str, IntegerGrid] = {
    grid.name: grid
    for bits in range(2, 9)
    for group in (0, 16, 32, 40, 64, 128, 256)
    for symmetric in (True, False)
    for scale in _SCALES
    for grid in (IntegerGrid(bits, group, symmetric, scale),)
}
"""Those with the usual groups, by name. Any other group can be made."""
