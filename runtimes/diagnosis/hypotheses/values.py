"""Values that say nothing of the source: not finite, zero, of chance."""

from __future__ import annotations

import math

import numpy as np

from qconvert.runtimes.diagnosis.case import Case, Explanation
from qconvert.runtimes.diagnosis.sums import sums_of

UNRELATED = 0.2  # correlation below which two tensors have nothing in common
HALF_LARGEST = 65504.0  # of float16


def not_finite(case: Case) -> Explanation | None:
    broken = ~np.isfinite(case.here)
    count = int(broken.sum())
    if not count:
        return None
    kinds = [
        f"{int(test(case.here).sum())} {name}"
        for test, name in ((np.isnan, "NaN"), (np.isinf, "infinite"))
        if test(case.here).any()
    ]
    rows = np.flatnonzero(broken.any(1))
    column = int(broken[rows[0]].argmax())
    return Explanation(
        f"has {count} values that are not finite ({', '.join(kinds)}), in {len(rows)} of"
        f" {len(broken)} rows, the first at row {rows[0]}, column {column}",
        0.0,
    )


def zeros(case: Case) -> Explanation | None:
    """All of it, or rows at its end, or rows elsewhere, where the source's are not zero."""
    dead = np.asarray(~case.here.any(1), np.bool_)
    if not dead.any():
        return None
    lost = np.zeros(len(dead), np.bool_)
    for at, _, there in case.pieces():
        lost[at] = dead[at] & there.any(1)
    rows = np.flatnonzero(lost)
    if len(rows) == len(lost):
        return Explanation("is zero throughout", 0.0)
    if len(rows) == 0:
        return None
    kept = len(lost) - len(rows)
    if rows[0] == kept:
        return Explanation(f"is cut off: rows {kept} to {len(lost) - 1} are zero", 0.0)
    return Explanation(
        f"has {len(rows)} of {len(lost)} rows zero, the first of them {rows[0]}", 0.0
    )


def clamped(case: Case) -> Explanation | None:
    """What float16 cannot hold, cut to its largest."""
    count = int((np.abs(case.here) == np.float32(HALF_LARGEST)).sum())
    if not count:
        return None
    return Explanation(f"has {count} values that are cut to 65504, the largest of float16", 0.0)


def unrelated(case: Case) -> Explanation | None:
    rows, _ = sums_of(case)
    whole = rows.over(0)
    size = math.sqrt(max(float(whole.ss), 1e-30))
    own = math.sqrt(float(whole.dd))
    cosine = float(whole.sd) / max(size * own, 1e-30)
    if not abs(cosine) < UNRELATED:
        return None
    return Explanation(
        f"has nothing of the source in it: correlation {cosine:.2f}, size {own / size:.3g} times"
        " the source's, and no other tensor of its shape is like it",
        1.0,
    )
