"""Do the stored codes stand for the levels nearest to the source? Seen from the values alone.

Values that lie together in a row share a scale, whatever the format, so that each could have had
the level of any other. Rounding to nearest never leaves a value further from its source than from a
level beside it. Error feedback does, by choice, but seldom passes over a level.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qconvert.runtimes.diagnosis.case import Case, Floats

TOGETHER = 8  # values of a row that share a scale in every format
LOOKED = 1 << 17  # values looked at, in whole rows, spread evenly over the tensor
CLOSER = 0.999  # times the distance: ties and float32 are no difference
SAME = 1e-3  # of the largest level of the group: levels this close are one
SHIFTED = 0.75  # of the distance between levels: more than any rounding does


@dataclass(frozen=True, slots=True)
class Levels:
    looked: int  # values looked at
    moved: float  # share of them to whose source a level beside them is closer
    passed: float  # share whose source lies on the far side of such a level
    shifted: float  # share of groups whose values are all off alike, by SHIFTED of a level or more
    crowded: float  # the largest share that was passed over in one group


def levels_of(case: Case, picked: NDArray[np.intp] | None = None) -> Levels:
    """Of the `picked` rows, by default some LOOKED values spread over the tensor; all zero where
    rows are shorter than a group."""
    rows, columns = case.here.shape
    if picked is None:
        picked = np.arange(0, rows, max(1, case.here.size // LOOKED))
    columns -= columns % TOGETHER
    if not columns or not len(picked):
        return Levels(0, 0.0, 0.0, 0.0, 0.0)
    here = case.here[picked, :columns].reshape(-1, TOGETHER)
    there = case.picked(picked)[:, :columns].reshape(-1, TOGETHER)
    moved, passed = _moved(here, there)
    return Levels(
        here.size,
        float(moved.mean()),
        float(passed.mean()),
        _shifted(here, there),
        float(passed.mean(-1).max()),
    )


def _moved(here: Floats, there: Floats) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Per value: whether another level of its group is closer, and whether it was passed over."""
    off = there - here
    same = np.float32(SAME) * np.abs(here).max(-1, keepdims=True)
    reach = np.abs(off) * np.float32(CLOSER) - same
    moved, passed = np.zeros(here.shape, np.bool_), np.zeros(here.shape, np.bool_)
    for turn in range(1, TOGETHER):
        step = np.roll(here, turn, -1) - here
        closer = np.abs(off - step) < reach
        moved |= closer
        passed |= closer & (step * off > step * step) & (np.abs(step) > same)
    return moved, passed


def _shifted(here: Floats, there: Floats) -> float:
    """A zero point that is wrong by one moves the values of a group together by one level."""
    off = here - there
    mean = np.abs(off.mean(-1))
    scatter = off.std(-1)
    gaps = np.diff(np.sort(here, -1), axis=-1)
    least = np.float32(SAME) * np.abs(here).max(-1, keepdims=True)
    gap = np.where(gaps > least, gaps, np.inf).min(-1)
    return float(((mean > SHIFTED * gap) & (scatter < 0.5 * gap)).mean())
