"""Linears whose rows are no whole groups of their grid, filled up for algorithms, and cut again.

The columns added have weights and inputs that are always zero: damped, their moments are a share of
the identity, apart from all others. So no feedback reaches them, their codes stand for zero, and
what is found for the rest is what it would be without them.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from qconvert.algorithms.slots import Fit
from qconvert.formats.grid import Grid
from qconvert.formats.ragged import cut, filled, lacking
from qconvert.formats.tensor import QuantizedTensor


def fitted(
    fit: Fit,
    grid: Grid,
    w: NDArray[np.float32],  # [rows, cols], of any length
    weight: NDArray[np.float32] | None,
    threads: int,
) -> QuantizedTensor:
    """What `fit` makes of whole groups, without the columns that were added."""
    weight = None if weight is None else filled(weight, grid.block, weight.mean())
    return cut(fit(grid, filled(w, grid.block), weight, threads), w.shape[1])


def filled_columns(w: torch.Tensor, grid: Grid) -> torch.Tensor:
    """w [rows, cols] with columns of zeros up to whole groups."""
    more = lacking(w.shape[1], grid.block)
    return torch.nn.functional.pad(w, (0, more)) if more else w


def filled_moments(second: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Second moments [cols, cols] of inputs with as many channels of zeros."""
    more = lacking(len(second), grid.block)
    return torch.nn.functional.pad(second, (0, more, 0, more)) if more else second
