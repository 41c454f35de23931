"""Sums over one decoded matrix beside its source, in one pass over both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qconvert.runtimes.diagnosis.case import Case, Floats

COLUMNS = 16
"""Columns summed together: no format here shares a scale among fewer, and most share it among a
multiple of it."""

TINY = 1e-30
ROWS = 128  # at a time: what is in work stays in the cache


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums of products over some values: source s, decoded d, their difference d - s."""

    ss: NDArray[np.float64]
    dd: NDArray[np.float64]
    sd: NDArray[np.float64]
    ee: NDArray[np.float64]
    e: NDArray[np.float64]

    def over(self, axis: int) -> Sums:
        return Sums(*(one.sum(axis) for one in (self.ss, self.dd, self.sd, self.ee, self.e)))

    @property
    def factor(self) -> NDArray[np.float64]:
        """By which the decoded values would have to be multiplied to fit best."""
        return np.asarray(self.sd / np.maximum(self.dd, TINY))

    @property
    def left(self) -> NDArray[np.float64]:
        """Squares of what no factor takes away."""
        return np.maximum(self.ss - self.sd**2 / np.maximum(self.dd, TINY), 0)


def sums_of(case: Case) -> tuple[Sums, Sums]:
    """By row, and by row and COLUMNS columns: [rows], [rows, columns / COLUMNS] (a last group that
    is not whole counts in the rows alone)."""
    rows, columns = case.here.shape
    groups = columns // COLUMNS
    whole = groups * COLUMNS
    by_row = np.empty((5, rows))
    by_group = np.empty((5, rows, groups), np.float32)
    ones = np.ones(COLUMNS, np.float32)  # a product with it is the fastest sum of a few values

    def add(number: int, at: slice, values: Floats) -> None:
        pieces = np.ascontiguousarray(values[:, :whole]).reshape(-1, COLUMNS)
        by_group[number, at] = (pieces @ ones).reshape(-1, groups)
        by_row[number, at] = by_group[number, at].sum(-1, dtype=np.float64)
        by_row[number, at] += values[:, whole:].sum(-1, dtype=np.float64)

    with np.errstate(over="ignore", invalid="ignore"):
        for at, here, there in case.pieces():
            for start in range(0, len(here), ROWS):
                part = slice(start, min(start + ROWS, len(here)))
                target = slice(at.start + part.start, at.start + part.stop)
                decoded, original = here[part], there[part]
                error = decoded - original
                add(0, target, original * original)
                add(1, target, decoded * decoded)
                add(2, target, original * decoded)
                add(3, target, error * error)
                add(4, target, error)
    return Sums(*by_row), Sums(*by_group)
