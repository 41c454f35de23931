"""The shrink search: lines that cover less and less of a group, the least squared error kept.

It is the "MSE" observer of LLMC, ModelOpt and others, with errors weighted by importance. Where a
scale is one of few (a power of two), what counts is the error of the nearest that can be stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qconvert.algorithms.fits.minmax import FIT as MINMAX
from qconvert.algorithms.groups import by_group, by_rows, chosen, decoded, nearest
from qconvert.formats.grid import Grid, Lines
from qconvert.formats.tensor import QuantizedTensor
from qconvert.kernels.descent import parameters_move

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ShrinkSearch:
    name: str = "mse"
    summary: str = "min/max shrunk in steps, the least weighted squared error of each group"
    least: float = 0.6
    steps: int = 21

    def __call__(
        self, grid: Grid, w: Floats, weight: Floats | None, threads: int
    ) -> QuantizedTensor:
        start = grid.lines(MINMAX(grid, w, weight, threads))
        importance = np.ones(w.shape[1], np.float32) if weight is None else weight
        if not parameters_move(grid.search):
            return grid.place(w, self._stored(w, importance, grid, start, threads), threads=threads)
        each = importance.reshape(-1, grid.group or w.shape[1])

        def find(g: Floats, part: slice) -> Lines:
            return self._best(g, each, grid.levels, _times(start, part, np.float32(1)))

        return grid.place(w, by_rows(find, grid, w, threads), threads=threads)

    def _stored(self, w: Floats, weight: Floats, grid: Grid, start: Lines, threads: int) -> Lines:
        """The best of the lines that the grid makes of each step."""
        best, least = start, np.full(start.scale.shape, np.inf, np.float32)
        for by in self._steps():
            tensor = grid.place(w, _times(start, slice(None), by), threads=threads)
            off = w - grid.decode(tensor)
            error = by_group(weight * np.square(off), grid)
            better = error < least
            best = chosen(better, grid.lines(tensor), best)
            least = np.where(better, error, least)
        return best

    def _steps(self) -> Floats:
        return np.linspace(1, self.least, self.steps, dtype=np.float32)

    def _best(self, g: Floats, weight: Floats, levels: Floats, start: Lines) -> Lines:
        best = start
        least = np.full(start.scale.shape, np.inf, np.float32)
        for by in self._steps():
            lines = _times(start, slice(None), by)
            error = (weight * np.square(g - decoded(lines, nearest(g, lines, levels)))).sum(-1)
            better = error < least
            best, least = chosen(better, lines, best), np.where(better, error, least)
        return best


def _times(lines: Lines, part: slice, by: np.float32) -> Lines:
    """Some rows of the lines, shrunk towards zero. What a grid could store it can store still."""
    offset = None if lines.offset is None else lines.offset[part] * by
    return Lines(lines.scale[part] * by, offset)


FIT = ShrinkSearch()
