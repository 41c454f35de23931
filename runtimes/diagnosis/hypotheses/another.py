"""Another tensor of the model in this one's place."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.source import SourceTensor
from qconvert.runtimes.diagnosis.case import Case, Explanation, Floats

ROWS = 8  # compared of each tensor, spread evenly
SURE = 0.7  # cosine from which a tensor is known again
CLEARLY = 0.2  # by which it must be more like than what should be there


def another(case: Case) -> Explanation | None:
    """One of the same shape whose rows are much more like the decoded ones."""
    picked = np.unique(np.linspace(0, len(case.here) - 1, ROWS).astype(np.intp))
    here = case.here[picked]
    own = _cosine(here, rows_of(case, case.tensor, picked))
    found, best = None, max(SURE, own + CLEARLY)
    for tensor in case.source.tensors:
        if tensor.shape != case.tensor.shape or tensor.name == case.tensor.name:
            continue
        cosine = _cosine(here, rows_of(case, tensor, picked))
        if cosine > best:
            found, best = tensor, cosine
    if found is None:
        return None
    return Explanation(f"holds {found.name}", math.sqrt(max(1 - best**2, 0)))


def another_reordered(case: Case) -> Explanation | None:
    """One of the same block or role with its rows in some other order: the sizes of columns, which
    do not depend on it, are as like as those of one tensor."""
    here = _sizes(case.here)
    found, best = None, SURE
    for tensor in case.source.tensors:
        if tensor.shape != case.tensor.shape or tensor.name == case.tensor.name:
            continue
        if tensor.block != case.tensor.block and tensor.role != case.tensor.role:
            continue
        likeness = float(
            np.corrcoef(here, _sizes(case.source.rows(tensor, 0, tensor.shape[0])))[0, 1]
        )
        if likeness > best:
            found, best = tensor, likeness
    own = float(np.corrcoef(here, _sizes(case.there()))[0, 1])
    if found is None or best < own + CLEARLY:
        return None
    left = math.sqrt(max(1 - best**2, 0))
    return Explanation(f"holds {found.name}, with its rows in another order", left)


def _sizes(rows: Floats) -> NDArray[np.float64]:
    """By column: the sum of squares."""
    return np.asarray(np.einsum("ij,ij->j", rows, rows, dtype=np.float64))


def rows_of(case: Case, tensor: SourceTensor, picked: NDArray[np.intp]) -> Floats:
    """Some rows of any tensor of the source."""
    if tensor.transposed:
        return case.source.rows(tensor, 0, tensor.shape[0])[picked]
    return np.concatenate(
        [case.source.rows(tensor, int(row), int(row) + 1).reshape(1, -1) for row in picked]
    )


def _cosine(one: Floats, other: Floats) -> float:
    size = math.sqrt(float(np.square(one).sum()) * float(np.square(other).sum()))
    return float(np.multiply(one, other).sum()) / max(size, 1e-30)
