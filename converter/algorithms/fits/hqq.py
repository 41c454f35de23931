"""Half-quadratic quantization (Badri and Shaji 2023): lines under a loss that forgives outliers.

Minimises the sum of |w - decoded|^p, p < 1. The error is split off as a variable of its own, e, and
two steps alternate while beta grows:

    e      <- shrink(w - decoded), the generalised soft threshold
    offset <- mean of (w - e - scale * level), with the nearest levels

The paper moves the zero point: that is the offset here, in other units. A grid without an offset
gets the scale that is best for w - e and the levels in its place, the same half-quadratic step in
the other unknown. It takes no importance: the method uses no data. Where a scale is one of few (a
power of two), a group keeps its range from end to end if what is stored of the best is worse.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qconvert.algorithms.fits.minmax import covering
from qconvert.algorithms.groups import by_group, by_rows, chosen, decoded, nearest
from qconvert.formats.grid import Grid, Lines
from qconvert.formats.tensor import QuantizedTensor
from qconvert.kernels.descent import parameters_move

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class HalfQuadratic:
    """The constants are those of the paper."""

    name: str = "hqq"
    summary: str = "half-quadratic: offsets (or scales) under an lp loss, p = 0.7 (Badri, Shaji)"
    p: float = 0.7
    beta: float = 10.0
    kappa: float = 1.01
    iterations: int = 20

    def __call__(
        self, grid: Grid, w: Floats, weight: Floats | None, threads: int
    ) -> QuantizedTensor:
        lines = by_rows(lambda g, _: self.solve(g, grid), grid, w, threads)
        if parameters_move(grid.search):
            return grid.place(w, lines, threads=threads)
        start = by_rows(lambda g, _: covering(g, grid), grid, w, threads)
        found, plain = (grid.place(w, one, threads=threads) for one in (lines, start))
        losses = [
            by_group(np.power(np.abs(w - grid.decode(one)), np.float32(self.p)), grid)
            for one in (found, plain)
        ]
        best = chosen(losses[0] < losses[1], grid.lines(found), grid.lines(plain))
        return grid.place(w, best, threads=threads)

    def solve(self, g: Floats, grid: Grid) -> Lines:
        """The best lines met on the way from min/max, of each group of g [rows, groups, columns],
        before they are rounded to what the grid can store."""
        lines = covering(g, grid)
        best, least, beta = lines, np.full(lines.scale.shape, np.inf, np.float32), self.beta
        for _ in range(self.iterations + 1):
            level = nearest(g, lines, grid.levels)
            error = g - decoded(lines, level)
            loss = self.loss(error)
            better = loss < least
            best, least = chosen(better, lines, best), np.where(better, loss, least)
            lines = _solved(g - self.shrink(error, beta), level, lines)
            beta *= self.kappa
        return best

    def loss(self, error: Floats) -> Floats:
        """Mean of |error|^p over the last axis."""
        loss: Floats = np.power(np.abs(error), np.float32(self.p)).mean(-1)
        return loss

    def shrink(self, error: Floats, beta: float) -> Floats:
        """sign(x) * max(|x| - |x|^(p-1) / beta, 0), which is 0 up to |x|^(2-p) = 1 / beta."""
        size = np.abs(error)
        outside = size > np.float32(beta ** (-1 / (2 - self.p)))
        far = size[outside]
        shrunk = np.zeros_like(error)
        less = far - np.power(far, np.float32(self.p - 1)) / np.float32(beta)
        shrunk[outside] = np.copysign(np.maximum(less, 0), error[outside])
        return shrunk


def _solved(target: Floats, level: Floats, lines: Lines) -> Lines:
    """Lines through `target` at fixed levels: a new offset, or a new scale where there is none."""
    if lines.offset is not None:
        return Lines(lines.scale, (target - lines.scale[..., None] * level).mean(-1))
    squares = np.square(level).sum(-1)
    found = (target * level).sum(-1) / np.maximum(squares, 1)
    return Lines(np.where(squares > 0, found, lines.scale), None)


FIT = HalfQuadratic()
