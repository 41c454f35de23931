"""One linear through the fit and the rounds of a recipe, each judged on held-out rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from qconvert.algorithms.curvature import output_error, quadratic
from qconvert.algorithms.panels import joined
from qconvert.algorithms.place import decoded, values_of
from qconvert.algorithms.registry import fits, rounds
from qconvert.algorithms.rounds.nearest import ROUND as NEAREST
from qconvert.algorithms.slots import Setting, Task
from qconvert.algorithms.whole import filled_columns, filled_moments, fitted
from qconvert.engine.pieces import Piece
from qconvert.engine.record import LinearRecord
from qconvert.formats.grid import Grid, ScaleOverflow
from qconvert.formats.ragged import cut
from qconvert.formats.refusal import refuse
from qconvert.formats.tensor import QuantizedTensor
from qconvert.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Solved:
    role: str
    tensor: QuantizedTensor
    values: torch.Tensor  # decoded, [rows, cols]
    record: LinearRecord


def solve(
    name: str,
    role: str,
    w: torch.Tensor,
    pieces: Sequence[Piece],
    grid: Grid,
    recipe: Recipe,
    setting: Setting,
    known: NDArray[np.float32] | None = None,
) -> Solved:
    """Fit, then round after round, each piece of the rows with its own second moments. A recipe
    that looks at no data fits with `known`, [cols], the importance of each column without data."""
    try:
        if recipe.calibrated:
            solved = [_solve(name, w[one.rows], one, grid, recipe, setting) for one in pieces]
        else:
            solved = _fitted(w, pieces, grid, recipe, setting, known)
    except ScaleOverflow as fault:
        raise refuse(
            f"{name} holds a weight too large for {grid.name}: {fault}",
            f"its largest is {float(w.abs().max()):.3g}: choose a float type, or check the model",
        ) from None
    back = np.argsort(np.concatenate([one.rows for one in pieces]), kind="stable")
    tensor = joined([one.tensor for one in solved]).take_rows(back)
    values = values_of(grid, tensor, w.device, setting)
    record = LinearRecord(
        name,
        role,
        grid.name,
        _mean([one.plain for one in solved], pieces),
        _mean([one.error for one in solved], pieces),
        _common([one.steps for one in solved]),
    )
    return Solved(role, tensor, values, record)


def _fitted(
    w: torch.Tensor,
    pieces: Sequence[Piece],
    grid: Grid,
    recipe: Recipe,
    setting: Setting,
    known: NDArray[np.float32] | None,
) -> list[_Part]:
    """The fit alone, as it is made without data, judged piece by piece."""
    tensor = fitted(fits()[recipe.fit], grid, w.cpu().numpy(), known, setting.threads)
    off = w - values_of(grid, tensor, w.device, setting)
    found = []
    for one in pieces:
        error = quadratic(off[one.rows], one.held) / (quadratic(w[one.rows], one.held) or 1.0)
        found.append(_Part(tensor.take_rows(one.rows), error, error, (recipe.fit,)))
    return found


def judged(
    solved: Solved,
    tensor: QuantizedTensor,
    step: str,
    w: torch.Tensor,
    pieces: Sequence[Piece],
    grid: Grid,
    setting: Setting,
) -> Solved:
    """The linear with the codes that `step` found, and the error of its own output for these."""
    values = values_of(grid, tensor, w.device, setting)
    errors = [
        quadratic((w - values)[one.rows], one.held) / (quadratic(w[one.rows], one.held) or 1.0)
        for one in pieces
    ]
    record = solved.record
    steps = (*record.steps, step)
    return Solved(
        solved.role, tensor, values, replace(record, error=_mean(errors, pieces), steps=steps)
    )


@dataclass(frozen=True, slots=True)
class _Part:
    tensor: QuantizedTensor
    plain: float
    error: float
    steps: tuple[str, ...]


def _solve(
    name: str, w: torch.Tensor, piece: Piece, grid: Grid, recipe: Recipe, setting: Setting
) -> _Part:
    """A guarded recipe keeps a round only where the error falls on rows that were held out, so it
    is never worse there than the weighted fit alone."""
    cols, w = w.shape[1], filled_columns(w, grid)
    second, held = (filled_moments(one, grid) for one in (piece.fit, piece.held))
    second = second.to(w.device)
    task = Task(name, w, second, held, grid, setting)
    fit = fits()[recipe.fit]
    best = NEAREST(task, fit, None)
    plain = least = _error(best, task)
    steps = [recipe.fit]
    for step in recipe.rounds:
        if step == NEAREST.name:
            continue
        found = rounds()[step](task, fit, None if len(steps) == 1 else best)
        error = _error(found, task)
        if not recipe.guarded or error < least:
            best, least = found, error
            steps.append(step)
    power = quadratic(w, held) or 1.0
    return _Part(cut(best, cols), plain / power, least / power, tuple(steps))


def _error(tensor: QuantizedTensor, task: Task) -> float:
    return output_error(decoded(task, tensor), task, task.held)


def _mean(errors: Sequence[float], pieces: Sequence[Piece]) -> float:
    """By the number of rows."""
    rows = [len(one.rows) for one in pieces]
    return sum(error * count for error, count in zip(errors, rows, strict=True)) / sum(rows)


def _common(steps: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """What any piece has kept, in order."""
    return max(steps, key=len)
