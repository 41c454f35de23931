"""Coordinate descent with the full second moments: codes and parameters, one move at a time.

From what the round before it found. Each sweep moves every code to the best value that its group
can give it while all others stay, then each group's scale and offset to the closed-form optimum,
rounded to what the file stores, and then the scales that groups share: the re-fit of scales and the
re-rounding of codes in one monotone descent of (w - q) H (w - q)'. On grids whose scales are not
the kernels' to move (`kernels.fit.Table`) only codes are.

Coordinate descent on codes: as in QuantEase (Behdin et al. 2023). Joint moves of the parameters of
formats with two levels of scales: own work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qconvert.algorithms.curvature import damped
from qconvert.algorithms.panels import Panels, joined
from qconvert.algorithms.rounds.nearest import ROUND as NEAREST
from qconvert.algorithms.slots import Fit, Task
from qconvert.algorithms.wide import refit
from qconvert.formats.tensor import QuantizedTensor
from qconvert.kernels.descent import NONE, State, descend, parameters_move

Params = Mapping[str, NDArray[Any]]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Descent:
    """`sweeps` over all columns, times the effort; one where there is to be no effort."""

    sweeps: int = 3
    damping: float = 0.01  # share of the mean of the moments' diagonal
    name: str = "descent"
    summary: str = "coordinate descent on codes and scales, with the full second moments"

    def __call__(self, task: Task, fit: Fit, start: QuantizedTensor | None) -> QuantizedTensor:
        start = NEAREST(task, fit, None) if start is None else start
        moments = damped(task.second, self.damping).float()
        panels = Panels.of(task)
        sweeps = self.sweeps * task.setting.effort or 1

        def part(rows: slice) -> QuantizedTensor:
            return _part(task, panels, moments, task.w[rows], start.take_rows(rows), sweeps)

        return joined(panels.map(part), axis=0)


def _part(
    task: Task,
    panels: Panels,
    moments: torch.Tensor,
    w: torch.Tensor,
    start: QuantizedTensor,
    sweeps: int,
) -> QuantizedTensor:
    grid, device = task.grid, w.device
    chosen = np.ascontiguousarray(grid.levels[start.codes].T)  # [cols, rows]
    moving = parameters_move(grid.search)
    fixed = {} if moving else {"d": grid.lines(start).scale}
    params = {
        name: np.ascontiguousarray(v.astype(np.float32).T)
        for name, v in (fixed or start.params).items()
    }
    cols = len(chosen)
    off = torch.from_numpy(grid.decode(start)).to(device) - w
    gradient = moments @ off.t()
    for _ in range(sweeps):
        for span in panels.columns:
            change = descend(
                gradient[span].cpu().numpy(),
                moments[span, span].cpu().numpy(),
                chosen[span],
                _state(params, span, cols),
                grid.search,
                parameters=not panels.whole_rows,
            )
            gradient += moments[:, span] @ torch.from_numpy(change).to(device)
        if panels.whole_rows and moving:
            refit(gradient, moments, chosen, _state(params, slice(0, cols), cols), grid.search)
    kept = _stored(params, start.params) if moving else start.params
    return QuantizedTensor(grid.name, _codes(chosen, grid.levels), kept)


def _codes(chosen: Floats, levels: Floats) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.searchsorted(levels, chosen).astype(np.uint8).T)


def _stored(params: Mapping[str, Floats], like: Params) -> dict[str, NDArray[Any]]:
    return {name: np.ascontiguousarray(v.T).astype(like[name].dtype) for name, v in params.items()}


def _state(params: Mapping[str, Floats], span: slice, cols: int) -> State:
    """Views of the parameters of some columns: what the kernel changes is changed in `params`."""

    def view(name: str) -> Floats:
        values = params[name]
        per = cols // len(values)
        return values[span.start // per : max(span.stop // per, span.start // per + 1)]

    offset = next((view(name) for name in ("mins", "m", "zero") if name in params), NONE)
    if "scales" not in params:
        return State(view("d"), offset)
    dmin = view("dmin")[0] if "dmin" in params else NONE
    return State(view("scales"), offset, view("d")[0], dmin)


ROUND = Descent()
