"""Scales and offsets from the extremes of each group: what "round to nearest" means."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qconvert.algorithms.groups import by_rows
from qconvert.formats.grid import Grid, Lines
from qconvert.formats.tensor import QuantizedTensor

Floats = NDArray[np.float32]


def covering(g: Floats, grid: Grid) -> Lines:
    """Lines that just cover each group of g [rows, groups, columns].

    With an offset the smallest element lies on the lowest level and the largest on the highest.
    Without one the element of largest magnitude lies on the lowest level, whatever its sign: the
    formats have one level more below zero than above.
    """
    levels = grid.levels
    if not grid.has_offset:
        extreme = np.take_along_axis(g, np.abs(g).argmax(-1)[..., None], -1)[..., 0]
        return Lines(extreme / levels[0] + np.float32(0), None)  # no -0 for a group of zeros
    low = g.min(-1)
    scale = g.max(-1) / (levels[-1] - levels[0]) - low / (levels[-1] - levels[0])
    return Lines(scale, low - scale * levels[0])


@dataclass(frozen=True, slots=True)
class MinMax:
    name: str = "minmax"
    summary: str = "the range of each group from end to end; takes no importance"

    def __call__(
        self, grid: Grid, w: Floats, weight: Floats | None, threads: int
    ) -> QuantizedTensor:
        lines = by_rows(lambda g, _: covering(g, grid), grid, w, threads)
        return grid.place(w, lines, threads=threads)


FIT = MinMax()
