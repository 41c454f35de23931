"""Right codes under wrong scales or zero points."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from qconvert.runtimes.diagnosis.case import Case, Explanation
from qconvert.runtimes.diagnosis.hypotheses.another import rows_of
from qconvert.runtimes.diagnosis.sums import COLUMNS, Sums, sums_of

MENDED = 0.6  # of the error may be left by a supposition that explains it
FIT = 0.6  # and as much of the source
OFF = 0.05  # a factor that is this far from the usual is off
PICKED = 64  # rows by which the scales of another tensor are known again
WIDER = (1, 2, 4, 8)  # groups that may share a scale, in COLUMNS
SURE = 0.8  # correlation from which they are
Values = NDArray[np.float64]


def wrong_scales(case: Case) -> Explanation | None:
    """Factors of the whole tensor, of rows, of groups of columns, or of groups in rows: the first
    that mends as much, nearly, as the last and finest."""
    rows, groups = sums_of(case)
    columns = groups.over(0)
    size, error = float(rows.ss.sum()), float(rows.ee.sum())
    if not error > 0:
        return None
    levels: list[tuple[str, Sums]] = [
        ("", rows.over(0)), ("rows", rows), (f"groups of {COLUMNS} columns", columns),
        (f"groups of {COLUMNS} columns in a row", groups),
    ]  # fmt: skip
    left = [math.sqrt(float(one.left.sum(dtype=np.float64)) / size) for _, one in levels]
    finest = left[-1]
    error = math.sqrt(error / size)
    if finest > min(MENDED * error, FIT):
        return None
    at = next(at for at, one in enumerate(left) if one <= max(1.3 * finest, 0.3 * error))
    what, sums = levels[at]
    if not what:
        return Explanation(_whole(float(sums.factor)), left[at])
    return Explanation(_parts(what, sums, left[at]) + _stale(case), left[at])


def _whole(factor: float) -> str:
    times = 1 / factor if factor else math.inf
    if times < 0:
        return f"has its sign turned: it is the source times {times:.3g}"
    return f"is {times:.4g} times the source"


def _parts(what: str, sums: Sums, left: float) -> str:
    with np.errstate(divide="ignore", invalid="ignore"):
        times = np.asarray(1 / sums.factor).ravel()
    alive = (np.asarray(sums.dd) > 0).ravel() & (np.asarray(sums.ss) > 0).ravel()
    times = times[alive & np.isfinite(times)]
    off = np.abs(times - 1) > OFF
    low, high = np.quantile(times[off], (0.01, 0.99)) if off.any() else (1.0, 1.0)
    return (
        f"has wrong scales: {int(off.sum())} of {len(off)} {what} are {low:.2g} to {high:.2g} times"
        f" the source; right ones would leave an error of {left:.1%}"
    )


def _stale(case: Case) -> str:
    """Whose scales they are: factors that go with the ratio of another tensor's sizes to these."""
    picked = np.unique(np.linspace(0, len(case.here) - 1, PICKED).astype(np.intp))
    there = rows_of(case, case.tensor, picked)
    found, best = "", SURE
    spans = [COLUMNS * times for times in WIDER if COLUMNS * times <= there.shape[1]]
    own = {span: _sizes(there, span) for span in spans}
    off = {span: _sizes(case.here[picked], span) - own[span] for span in spans}
    for tensor in case.source.tensors:
        if tensor.shape != case.tensor.shape or tensor.name == case.tensor.name:
            continue
        rows = rows_of(case, tensor, picked)
        for span in spans:
            ratio = _sizes(rows, span) - own[span]
            with np.errstate(invalid="ignore"):
                likeness = float(np.corrcoef(off[span].ravel(), ratio.ravel())[0, 1])
            if likeness > best:
                found, best = tensor.name, likeness
    return f"; they go with {found}" if found else ""


def _sizes(rows: NDArray[np.float32], span: int) -> Values:
    """Logarithms of the largest magnitude by group."""
    whole = rows.shape[1] - rows.shape[1] % span
    largest = np.abs(rows[:, :whole]).reshape(len(rows), -1, span).max(-1)
    return np.asarray(np.log(np.maximum(largest, 1e-20)), np.float64)


def zero_points(case: Case) -> Explanation | None:
    """Groups whose values are all off by the same amount."""
    rows, groups = sums_of(case)
    error, size = float(groups.ee.sum(dtype=np.float64)), float(rows.ss.sum())
    alike = float((groups.e.astype(np.float64) ** 2).sum()) / COLUMNS
    if not error > 0 or alike < (1 - MENDED**2) * error:
        return None
    mean = groups.e / COLUMNS
    shift = math.sqrt(float(np.square(mean, dtype=np.float64).mean()))
    left = math.sqrt(max(error - alike, 0) / max(size, 1e-30))
    return Explanation(
        f"has wrong zero points: the values of groups of {COLUMNS} columns are off alike, by"
        f" {shift:.2g} (root mean square); right ones would leave an error of {left:.1%}",
        left,
    )
