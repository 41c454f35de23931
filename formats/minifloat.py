"""Grids of small floats: FP8 (e4m3) and FP4 (e2m1) levels, with the scales that hardware reads.

    fp8_channel   a float32 scale for each row
    fp8_tensor    a float32 scale for a tensor and what a runtime fuses with it: `bound`
    fp8_block128  a float32 scale for each block of 128 x 128
    nvfp4         an e4m3 scale for 16 columns, and one for the tensor and what is fused: `bound`
    mxfp4         a power of two for 32 columns

Codes are indices into the ascending levels; `kernels.minifloat` turns them into the stored bits and
back (`E4M3.bits(codes)`, `E2M1.bits(codes)`). Of what parameters a tensor has: `multipliers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.grid import Lines
from qconvert.formats.multipliers import Float8, Multipliers, Params, Plain, PowerOfTwo, Shared
from qconvert.formats.nearest import on_lines
from qconvert.formats.tensor import QuantizedTensor
from qconvert.kernels.cpu import small_float_loops
from qconvert.kernels.fit import usable
from qconvert.kernels.minifloat import E2M1, E4M3, Bytes, MiniFloat
from qconvert.kernels.searches import (
    Fit,
    Table,
)
from qconvert.kernels.small_floats import FloatSearch

Floats = NDArray[np.float32]
AT_ONCE = 1 << 17  # weights: what a search makes of them stays in the cache


class Element(Protocol):
    """The values of a grid before scales: `kernels.minifloat.MiniFloat`, or what has other codes
    for the same values."""

    @property
    def sign(self) -> int: ...
    @property
    def levels(self) -> Floats: ...
    @property
    def top(self) -> float: ...
    def rounded(self, v: Floats) -> Bytes: ...
    def bits(self, codes: Bytes) -> Bytes: ...
    def codes(self, bits: Bytes) -> Bytes: ...


@dataclass(frozen=True, slots=True)
class MiniFloatGrid:
    """Satisfies `qconvert.formats.grid.Grid`. Parameters are fitted to whole rows (`block` is 0),
    for all rows of a block together; a tensor then gives and takes rows freely."""

    name: str
    element: Element
    scales: Multipliers
    group: int = 0

    @property
    def block(self) -> int:
        return 0

    @property
    def bits_per_weight(self) -> float:
        """Of codes and scales, as tightly as a target can pack them; a scale per row is nothing."""
        codes = (2 * self.element.sign - 1).bit_length()
        return codes + (self.scales.bits / self.group if self.group else 0)

    @property
    def levels(self) -> Floats:
        return self.element.levels

    @property
    def has_offset(self) -> bool:
        return False

    @property
    def together(self) -> int:
        return self.scales.together

    @property
    def search(self) -> Fit:
        """A table: nothing but codes is moved by the kernels."""
        fields = tuple((name, per) for name, _, per in self.scales.fields)
        return Table(self.group, self.levels, fields)

    def quantize(
        self, w: Floats, weight: Floats | None = None, *, threads: int = 1
    ) -> QuantizedTensor:
        """The scale with the least (weighted) squared error among those that cover the largest
        magnitude just so and a few around it; the first of equals. `ScaleOverflow` where it cannot
        be stored, `ValueError` where the grid is to be bound first."""
        weight = np.ones(w.shape[1], np.float32) if weight is None else usable(weight)
        parts = self._parts(w.shape)
        with ThreadPoolExecutor(max(threads, 1)) as pool:
            found = list(pool.map(lambda part: self._fitted(w[part], weight), parts))
        names = [name for name, _, _ in self.scales.fields]
        params = {name: np.concatenate([one[name] for one in found]) for name in names}
        return self._placed(w, params, threads)

    def place(self, w: Floats, lines: Lines, *, threads: int = 1) -> QuantizedTensor:
        """Stored scales nearest to the wanted ones, whose sign does not count, and nearest codes,
        ties to even: what hardware makes of w / scale."""
        return self._placed(w, self.scales.nearest(np.abs(lines.scale)), threads)

    def lines(self, tensor: QuantizedTensor) -> Lines:
        return Lines(self.scales.scale(tensor.params), None)

    def decode(self, tensor: QuantizedTensor) -> Floats:
        return on_lines(tensor.codes, self.lines(tensor), self.levels)

    def row_bytes(self, cols: int) -> int:
        fields = self.scales.fields
        return cols + sum(
            cols // (per or cols) * np.dtype(kind).itemsize for _, kind, per in fields
        )

    def pack(self, tensor: QuantizedTensor) -> NDArray[np.uint8]:
        """Neutral: of each row a byte per code, then the parameters, little-endian."""
        rows = len(tensor.codes)
        parts = [
            np.ascontiguousarray(tensor.params[name], kind).view(np.uint8).reshape(rows, -1)
            for name, kind, _ in self.scales.fields
        ]
        return np.concatenate([tensor.codes, *parts], axis=1)

    def unpack(self, packed: NDArray[np.uint8], cols: int) -> QuantizedTensor:
        params: dict[str, NDArray[Any]] = {}
        at = cols
        for name, kind, per in self.scales.fields:
            end = at + cols // (per or cols) * np.dtype(kind).itemsize
            params[name] = np.ascontiguousarray(packed[:, at:end]).view(kind)
            at = end
        return QuantizedTensor(self.name, packed[:, :cols].copy(), params)

    def _parts(self, shape: tuple[int, ...]) -> list[slice]:
        """Rows that are worked on at once, whole blocks of them."""
        rows, cols = shape
        step = self.together * max(1, AT_ONCE // (self.together * max(cols, 1)))
        return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]

    def _placed(self, w: Floats, params: Params, threads: int) -> QuantizedTensor:
        scale = self.scales.scale(params)
        codes = np.empty(w.shape, np.uint8)

        def some(part: slice) -> None:
            codes[part] = self._codes(w[part], scale[part]).reshape(codes[part].shape)

        with ThreadPoolExecutor(max(threads, 1)) as pool:
            list(pool.map(some, self._parts(w.shape)))
        return QuantizedTensor(self.name, codes, params)

    def _codes(self, w: Floats, scale: Floats) -> NDArray[np.uint8]:
        """[rows, cols], perhaps apart by groups: a true division, as references do it."""
        if isinstance(self.element, MiniFloat):
            return small_float_loops.nearest(w, scale, self.element)
        grouped = w.reshape(*scale.shape, -1)
        with np.errstate(over="ignore"):
            return self.element.rounded(grouped / scale[..., None])

    def _fitted(self, w: Floats, weight: Floats) -> Params:
        grouped = w.reshape(len(w), -1, self.group or w.shape[1])
        covering = np.abs(grouped).max(-1) / np.float32(self.element.top)
        best = start = self.scales.nearest(covering)
        if not self.scales.steps:
            return best
        least = self._error(w, weight, start)
        moving = self.scales.fields[0][0]
        for step in self.scales.steps:
            moved = self.scales.moved(start, step)
            error = self._error(w, weight, moved)
            better = error < least
            best = {**best, moving: np.where(better, moved[moving], best[moving])}
            least = np.minimum(least, error)
        return best

    def _error(self, w: Floats, weight: Floats, params: Params) -> Floats:
        """[rows, groups]: of each group, or of all groups that share a scale. Infinite, it is not
        the least."""
        if not isinstance(self.element, MiniFloat):
            raise TypeError(f"{self.name}: scales are searched where a zero has one code")
        error = small_float_loops.errors(w, weight, self.scales.scale(params), self.element)
        if self.together > 1:
            starts = np.arange(0, len(error), self.together)
            with np.errstate(over="ignore"):
                error = np.add.reduceat(error, starts)
            error = error.repeat(self.together, 0)[: len(w)]
        return error


@dataclass(frozen=True, slots=True)
class BindableGrid(MiniFloatGrid):
    """Satisfies `qconvert.formats.grid.Bindable` too: to fit, it wants to know the largest
    magnitude of all that shares its scale. What was bound can be bound again."""

    def bound(self, largest: float) -> BindableGrid:
        scales: Any = self.scales
        return replace(self, scales=replace(scales, largest=float(largest)))


def float_search(grid: MiniFloatGrid) -> FloatSearch | None:
    """The grid's own search as the kernels take it, on tensors of any device; None where only the
    grid itself rounds to its codes."""
    if not isinstance(grid.element, MiniFloat):
        return None
    scales: Any = grid.scales
    largest = getattr(scales, "largest", None)
    return FloatSearch(
        grid.element, grid.group, scales.stored, scales.steps, scales.together, largest
    )


GRIDS: Mapping[str, MiniFloatGrid] = {
    grid.name: grid
    for grid in (
        MiniFloatGrid("fp8_channel", E4M3, Plain(0)),
        BindableGrid("fp8_tensor", E4M3, Shared(E4M3.top)),
        MiniFloatGrid("fp8_block128", E4M3, Plain(128, together=128), 128),
        BindableGrid("nvfp4", E2M1, Float8(16), 16),
        MiniFloatGrid("mxfp4", E2M1, PowerOfTwo(32), 32),
    )
}
