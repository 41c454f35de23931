"""Rounding on trial: what a scale of the columns would cost the linears that read an input.

The cost of a linear is the mean of |(Q(W s) / s - W) x|^2 over tokens x, summed over outputs, from
the second moment H of x alone: tr(D H D'). So it does not depend on how the tokens were batched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from qconvert.algorithms.curvature import quadratic
from qconvert.engine.block import Block
from qconvert.formats.grid import Grid, ScaleOverflow

Columns = NDArray[np.float32]  # [cols]

ROWS = 256
"""Rows of a linear that a search looks at, for each step of effort: its larger ones are sampled at
even distances. What a search finds is judged on all rows."""

CLOSE = 1e-4
"""Errors nearer than this (relative) are compared again in float64: those of float32 depend on the
number of threads in their last bits, and the choice must not."""


@dataclass(frozen=True, slots=True)
class Linear:
    """Some rows of a linear that will be quantized."""

    w: torch.Tensor  # [rows, cols]
    grid: Grid
    share: float  # of all its rows that `w` holds


def linears(
    block: Block, roles: Sequence[str], grids: Mapping[str, Grid], most_rows: int | None = None
) -> list[Linear]:
    """Those of `roles` that are quantized, with at most `most_rows` rows each."""
    found = []
    for role in roles:
        if role in grids:
            w = block.weight(role)
            some = w if most_rows is None else w[torch.tensor(even_rows(len(w), most_rows))]
            found.append(Linear(some, grids[role], len(some) / len(w)))
    return found


def even_rows(rows: int, most: int) -> list[int]:
    """At most `most` of `rows`, at even distances."""
    count = min(rows, most)
    return [index * rows // count for index in range(count)]


def rounded(linear: Linear, scale: Columns, second: Columns, threads: int) -> torch.Tensor | None:
    """Q(W s), [rows, cols]: as the grid's own fit rounds it, each column as important as the scaled
    input is large. None when the grid cannot hold it. `second`: the diagonal of H. A grid that is
    bound to a largest magnitude is bound to that of these rows."""
    power = second.astype(np.float64) / np.square(scale, dtype=np.float64)
    mean = float(power.mean())
    weight = (power / mean).astype(np.float32) if mean > 0 else None
    w = linear.w.cpu().numpy() * scale
    make = getattr(linear.grid, "bound", None)  # a scale of the whole tensor moves with the columns
    grid = linear.grid if make is None else make(float(np.abs(w).max()))
    try:
        values = grid.decode(grid.quantize(w, weight, threads=threads))
    except ScaleOverflow:
        return None
    return torch.from_numpy(values).to(linear.w.device)


def output_error(
    linear: Linear, found: torch.Tensor, scale: Columns, h: torch.Tensor, dtype: torch.dtype
) -> float:
    """tr(D H D') with D = found / scale - W, of all rows of the linear."""
    by = torch.from_numpy(scale).to(found.device)
    return quadratic(found / by - linear.w, h, dtype) / linear.share


Cost = Callable[[Columns, torch.dtype], float]


def cheapest(candidates: Sequence[Columns], cost: Cost) -> int:
    """The index of the candidate that costs least, the first of equals."""
    costs = [cost(scale, torch.float32) for scale in candidates]
    least = min(costs)
    close = [index for index, found in enumerate(costs) if found <= least * (1 + CLOSE)]
    if len(close) > 1:
        costs = [cost(s, torch.float64) if i in close else np.inf for i, s in enumerate(candidates)]
    return int(np.argmin(costs))
