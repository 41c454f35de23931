"""What is measured of one decoded matrix beside its source, in one pass over both."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qconvert.runtimes.diagnosis.case import Case, Floats
from qconvert.runtimes.diagnosis.levels import Levels, levels_of

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


@dataclass(frozen=True, slots=True)
class Local:
    """Parts of a tensor that are much further off than its other parts."""

    row_over: float  # error of the worst row, in those of the usual row
    row_error: float
    row: int  # which one that is
    column_over: float  # the same of COLUMNS columns
    column_error: float
    column: int  # the first of them
    rescaled_rows: int  # rows that a factor of their own would mend
    rescaled_groups: float  # share of groups of COLUMNS in a row that one would mend


@dataclass(frozen=True, slots=True)
class Statistics:
    """Figures of one tensor that its peers are compared by."""

    error: float  # relative to the source
    slope: float  # least squares: the source times this is the decoded tensor, best
    factor: float  # least squares: the decoded tensor times this is the source, best
    levels: Levels
    local: Local


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


def statistics_of(case: Case, by_row: Sums, by_group: Sums) -> Statistics:
    """Of values that are all finite."""
    whole = by_row.over(0)
    ss = max(float(whole.ss), TINY)
    return Statistics(
        math.sqrt(float(whole.ee) / ss),
        float(whole.sd) / ss,
        float(whole.factor),
        levels_of(case),
        local_of(by_row, by_group),
    )


MUCH = 4.0  # times the usual error: a part that is off by that much ...
MENDED = 1.5  # ... and by no more than this with a factor of its own, has a wrong scale
FACTOR = 0.05  # a factor that is this far from the usual is one
SMALL = 0.1  # of the usual size: parts that are smaller are not looked at
LEAST = 1e-3  # usual error below which nothing is coarse enough to have scales


def local_of(by_row: Sums, by_group: Sums) -> Local:
    row_error, row_left, row_factor = _errors(by_row)
    column_error, _, _ = _errors(by_group.over(0))
    group_error, group_left, _ = _errors(by_group)
    usual_row, usual_group = (max(float(np.median(one)), LEAST) if one.size else LEAST
                              for one in (row_error, group_error))  # fmt: skip
    usual_column = max(float(np.median(column_error)), LEAST) if column_error.size else LEAST
    off = np.abs(row_factor - np.median(row_factor)) > FACTOR
    rescaled = (row_error > MUCH * usual_row) & (row_left < MENDED * usual_row) & off
    groups = (group_error > MUCH * usual_group) & (group_left < MENDED * usual_group)
    row = int(row_error.argmax())
    column = int(column_error.argmax()) if column_error.size else 0
    return Local(
        float(row_error[row]) / usual_row,
        float(row_error[row]),
        row,
        *(
            (float(column_error[column]) / usual_column, float(column_error[column]))
            if column_error.size
            else (0.0, 0.0)
        ),
        column * COLUMNS,
        int(rescaled.sum()),
        float(groups.mean()) if groups.size else 0.0,
    )


def _errors(sums: Sums) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Of each part: its error, what a factor leaves of it, the factor; 0, 0, 1 of small ones."""
    usual = float(sums.ss.mean()) if sums.ss.size else 0.0
    small = sums.ss < SMALL**2 * usual
    size = np.where(small, np.inf, np.maximum(sums.ss, TINY))
    factor = np.where(small, 1.0, sums.factor)
    return np.sqrt(sums.ee / size), np.sqrt(sums.left / size), factor
