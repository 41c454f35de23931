"""Figures of one decoded matrix, as a whole and of the parts of it that stand out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qconvert.runtimes.diagnosis.case import Case
from qconvert.runtimes.diagnosis.levels import Levels, levels_of
from qconvert.runtimes.diagnosis.sums import COLUMNS, TINY, Sums

MUCH = 4.0  # times the usual error: a part that is off by that much ...
MENDED = 1.5  # ... and by no more than this with a factor of its own, has a wrong scale
FACTOR = 0.05  # a factor that is this far from the usual is one
SMALL = 0.1  # of the usual size: parts that are smaller are not looked at
LEAST = 1e-3  # usual error below which nothing is coarse enough to have scales
OUTLIER = 2.5  # two bits make zero of no value that is larger than the largest by this
DEAD_ROWS = 1024
SUSPECT = 64  # groups that are furthest off: the levels in their rows are looked at
Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Part:
    """A row, a group of columns, or such a group in one row."""

    row: int
    column: int
    error: float  # relative to the source
    over: float  # the same, in errors of the usual part


@dataclass(frozen=True, slots=True)
class Local:
    """Parts of a tensor that are much further off than its other parts."""

    row: Part  # the worst
    columns: Part  # the worst COLUMNS columns
    rescaled_rows: int  # rows that a factor of their own would mend
    rescaled_groups: float  # share of groups of COLUMNS in a row that one would mend
    dead_groups: float  # share of groups that are zero, beside no value that explains it


@dataclass(frozen=True, slots=True)
class Statistics:
    """Figures of one tensor that its peers are compared by."""

    error: float  # relative to the source
    slope: float  # least squares: the source times this is the decoded tensor, best
    factor: float  # least squares: the decoded tensor times this is the source, best
    levels: Levels
    suspect: Levels  # of the rows whose groups are furthest off
    group: Part  # the group that is furthest off
    local: Local


def statistics_of(case: Case, by_row: Sums, by_group: Sums) -> Statistics:
    """Of values that are all finite."""
    whole = by_row.over(0)
    ss = max(float(whole.ss), TINY)
    group_error, group_left, _ = _errors(by_group)
    worst = _largest(group_error.ravel(), SUSPECT)
    rows = np.unique(worst // max(group_error.shape[1], 1))
    return Statistics(
        math.sqrt(float(whole.ee) / ss),
        float(whole.sd) / ss,
        float(whole.factor),
        levels_of(case),
        levels_of(case, rows),
        _part(group_error, group_error.shape[1]),
        _local(case, by_row, by_group, group_error, group_left),
    )


def _local(case: Case, by_row: Sums, by_group: Sums, error: Values, left: Values) -> Local:
    row_error, row_left, row_factor = _errors(by_row)
    column_error, _, _ = _errors(by_group.over(0))
    usual = _usual(row_error)
    off = np.abs(row_factor - np.median(row_factor)) > FACTOR
    rescaled = (row_error > MUCH * usual) & (row_left < MENDED * usual) & off
    groups = (error > MUCH * _usual(error)) & (left < MENDED * _usual(error))
    return Local(
        _part(row_error, 1),
        _part(column_error, len(column_error)),
        int(rescaled.sum()),
        float(groups.mean()) if groups.size else 0.0,
        _dead(case, (by_group.dd == 0) & (error > 0)),
    )


def _dead(case: Case, zero: NDArray[np.bool_]) -> float:
    """Share of the groups, in DEAD_ROWS rows at most. Rounding makes zeros of a group where a much
    larger value in its row is under the same scale."""
    rows = np.flatnonzero(zero.any(1))[:DEAD_ROWS]
    if not len(rows):
        return 0.0
    there = np.abs(case.picked(rows))
    groups = there[:, : zero.shape[1] * COLUMNS].reshape(len(rows), -1, COLUMNS).max(-1)
    unexplained = zero[rows] & (groups * OUTLIER > there.max(-1, keepdims=True))
    return float(unexplained.sum()) / zero[: rows[-1] + 1].size


def _usual(errors: Values) -> float:
    return max(float(np.median(errors)), LEAST) if errors.size else LEAST


def _part(errors: Values, across: int) -> Part:
    """The worst one; `across`: how many lie beside each other in a row."""
    if not errors.size:
        return Part(0, 0, 0.0, 0.0)
    at = int(errors.argmax())
    error = float(errors.ravel()[at])
    return Part(at // across, at % across * COLUMNS, error, error / _usual(errors))


def _errors(sums: Sums) -> tuple[Values, Values, Values]:
    """Of each part: its error, what a factor leaves of it, the factor; 0, 0, 1 of small ones."""
    usual = float(sums.ss.mean()) if sums.ss.size else 0.0
    small = sums.ss < SMALL**2 * usual
    size = np.where(small, np.inf, np.maximum(sums.ss, TINY))
    factor = np.where(small, 1.0, sums.factor)
    return np.sqrt(sums.ee / size), np.sqrt(sums.left / size), factor


def _largest(values: Values, count: int) -> NDArray[np.intp]:
    """Where the largest are, in any order."""
    if len(values) <= count:
        return np.arange(len(values))
    return np.argpartition(values, -count)[-count:]
