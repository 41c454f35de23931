"""The quadratic form that output errors are measured in: damped, factored, compared."""

from __future__ import annotations

import torch

from qconvert.algorithms.root import inverse_root
from qconvert.algorithms.slots import Task
from qconvert.formats.refusal import refuse

COLUMNS_AT_ONCE = 4096
"""Of H, in a product: what is copied stays small beside it."""
ROWS = 128
"""Rows of moments that are put in order at once."""


def damped(second: torch.Tensor, damping: float, order: torch.Tensor | None = None) -> torch.Tensor:
    """H + damping * mean(diag H) on the diagonal, float64 [cols, cols]. All zero: the identity.

    `order`, [cols]: rows and columns are taken in it. The result is a matrix of its own, and the
    only one that is made.
    """
    mean = second.diagonal().double().mean()
    if not mean > 0:
        return torch.eye(len(second), dtype=torch.float64, device=second.device)
    if order is None:
        wide = second.to(torch.float64, copy=True)
    else:
        wide = torch.empty(second.shape, dtype=torch.float64, device=second.device)
        for to, taken in zip(wide.split(ROWS), order.split(ROWS), strict=True):
            to.copy_(second[taken].index_select(1, order))
    wide.diagonal().add_(damping * mean)
    return wide


def factor(damped_moments: torch.Tensor, name: str, threads: int = 1) -> torch.Tensor:
    """Upper triangular U with H^-1 = U'U, float32; `Refused`, naming the tensor, when H does not
    factor. Computed in float64 in the memory of `damped_moments`, [cols, cols], whose values are
    lost (but for one that is not contiguous, or not float64: a copy is); on a processor by
    `threads`, whose number changes no bit.
    """
    found = inverse_root(damped_moments.double().contiguous(), threads)
    if found is None:
        raise refuse(
            f"{name}: the second moments of its input do not factor, even damped",
            "give more calibration text (--calib-rows), or use --method rtn",
        )
    return found


def output_error(values: torch.Tensor, task: Task, second: torch.Tensor) -> float:
    """Mean over tokens of |(w - values) x|^2, with the second moments of any set of rows."""
    return quadratic(task.w - values, second)


def quadratic(d: torch.Tensor, h: torch.Tensor, dtype: torch.dtype = torch.float32) -> float:
    """tr(d h d'), products in `dtype`, sums in float64. h [cols, cols] may wait on the processor
    while d [rows, cols] is on a device: some columns go there at a time."""
    left, total = d.to(dtype), 0.0
    for start in range(0, h.shape[1], COLUMNS_AT_ONCE):
        span = slice(start, start + COLUMNS_AT_ONCE)
        part = (left @ h[:, span].to(d.device, dtype)).mul_(left[:, span])
        total += float(part.sum(dtype=torch.float64))
    return total
