"""Which of the hypotheses explains a matrix that is not what the model holds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qconvert.runtimes.diagnosis.case import Case, Explanation
from qconvert.runtimes.diagnosis.hypotheses.another import another, another_reordered
from qconvert.runtimes.diagnosis.hypotheses.order import columns_moved, rows_moved, transposed
from qconvert.runtimes.diagnosis.hypotheses.scales import wrong_scales, zero_points
from qconvert.runtimes.diagnosis.hypotheses.values import clamped, not_finite, unrelated, zeros

HYPOTHESES: tuple[Callable[[Case], Explanation | None], ...] = (
    not_finite, clamped, zeros, another, transposed, rows_moved, columns_moved, zero_points,
    wrong_scales, another_reordered, unrelated,
)  # fmt: skip
"""The first that explains it is named: those that little else can look like come first."""


def diagnosed(case: Case) -> Explanation | None:
    """None: none of them does."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for hypothesis in HYPOTHESES:
            found = hypothesis(case)
            if found is not None:
                return found
    return None
