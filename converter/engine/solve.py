"""One linear through the fit and the rounds of a recipe, each judged on held-out rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qconvert.algorithms.curvature import decoded, output_error
from qconvert.algorithms.registry import fits, rounds
from qconvert.algorithms.rounds.nearest import ROUND as NEAREST
from qconvert.algorithms.slots import Setting, Task
from qconvert.engine.moments import Observed
from qconvert.engine.record import LinearRecord
from qconvert.formats.grid import Grid, ScaleOverflow
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
    observed: Observed,
    grid: Grid,
    recipe: Recipe,
    setting: Setting,
) -> Solved:
    """Fit, then round after round. A guarded recipe keeps a round only where the error falls on
    rows that were held out, so it is never worse there than the weighted fit alone."""
    task = Task(name, w, observed, grid, setting)
    fit = fits()[recipe.fit]
    try:
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
    except ScaleOverflow as fault:
        raise refuse(
            f"{name} holds a weight too large for {grid.name}: {fault}",
            f"its largest is {float(w.abs().max()):.3g}: choose a float type, or check the model",
        ) from None
    power = output_error(torch.zeros_like(w), task, observed.held.second) or 1.0
    record = LinearRecord(name, role, grid.name, plain / power, least / power, tuple(steps))
    return Solved(role, best, decoded(task, best), record)


def _error(tensor: QuantizedTensor, task: Task) -> float:
    return output_error(decoded(task, tensor), task, task.observed.held.second)
