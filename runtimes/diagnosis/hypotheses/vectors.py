"""Norms and biases: another one's, none, or not in the convention of the checkpoint."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.source import Source, SourceTensor

SAME = 0.01  # error below which a vector is another one
Vector = NDArray[np.float32]


def vector_problem(source: Source, tensor: SourceTensor, here: Vector) -> str:
    """What `here` is in place of `tensor`; a sentence without subject."""
    there = source.rows(tensor, 0, 1).reshape(-1)
    broken = int((~np.isfinite(here)).sum())
    if broken:
        first = int((~np.isfinite(here)).argmax())
        return f"has {broken} of {here.size} values that are not finite, the first at {first}"
    if not here.any():
        return "is zero throughout"
    if (here == 1).all():
        return "is 1 throughout, as if it had never been loaded"
    for offset, words in (
        (1.0, "is 1 more than the source: the 1 that norms of its family add is added twice"),
        (-1.0, "is 1 less than the source: the 1 that norms of its family add is missing"),
    ):
        if _error(here, there + np.float32(offset)) < SAME:
            return words
    for other in source.tensors:
        if other.shape == tensor.shape and other.name != tensor.name:
            if _error(here, source.rows(other, 0, 1).reshape(-1)) < SAME:
                return f"holds {other.name}"
    if _error(np.sort(here), np.sort(there)) < SAME:
        moved = int((np.abs(here - there) > SAME * np.abs(there).mean()).sum())
        return f"has its values in another order ({moved} of {here.size} moved)"
    factor = float(here @ there) / max(float(there @ there), 1e-30)
    if _error(here, np.float32(factor) * there) < SAME and abs(factor) > SAME:
        return f"is {factor:.4g} times the source"
    tail = int((here[::-1] != 0).argmax())
    if tail and there[-tail:].any():
        return f"is cut off: its last {tail} of {here.size} values are zero"
    off = np.abs(here - there)
    far = int((off > SAME * np.sqrt(np.square(there).mean())).sum())
    return (
        f"is off by {_error(here, there):.1%}: {far} of {here.size} values, most at"
        f" {int(off.argmax())}"
    )


def _error(here: Vector, there: Vector) -> float:
    size = float(np.square(there, dtype=np.float64).sum())
    off = float(np.square(here - there, dtype=np.float64).sum())
    return float(np.sqrt(off / max(size, 1e-30)))
