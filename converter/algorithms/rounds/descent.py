"""Coordinate descent with the full second moments: codes and parameters, one move at a time.

From what the round before it found. Each sweep moves every code to the best value that its group
can give it while all others stay, then each group's scale and offset to the closed-form optimum,
rounded to what the file stores, and then the scales that groups share: the re-fit of scales and the
re-rounding of codes in one monotone descent of (w - q) H (w - q)'. On grids whose scales are not
the kernels' to move (`kernels.searches.Table`) only codes are.

Coordinate descent on codes: as in QuantEase (Behdin et al. 2023). Joint moves of the parameters of
formats with two levels of scales: own work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from qconvert.algorithms.curvature import damped
from qconvert.algorithms.panels import Panels, joined
from qconvert.algorithms.place import Coded, Place, away, home, place_of
from qconvert.algorithms.rounds.nearest import ROUND as NEAREST
from qconvert.algorithms.slots import Fit, Task
from qconvert.algorithms.wide import refit
from qconvert.formats.tensor import QuantizedTensor
from qconvert.kernels.descent import NONE, State, descend, parameters_move

Params = Mapping[str, torch.Tensor]


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
        panels, place = Panels.of(task), place_of(task.grid, task.w.device, task.setting)
        sweeps = self.sweeps * task.setting.effort or 1
        coded = away(start, task.w.device)

        def part(rows: slice) -> QuantizedTensor:
            found = _part(task, place, panels, moments, task.w[rows], coded.rows(rows), sweeps)
            return home(task.grid, found)

        return joined(panels.map(part))


def _part(
    task: Task,
    place: Place,
    panels: Panels,
    moments: torch.Tensor,
    w: torch.Tensor,
    start: Coded,
    sweeps: int,
) -> Coded:
    search = task.grid.search
    levels = torch.tensor(task.grid.levels, device=w.device)
    chosen = levels[start.codes.t().contiguous().int()]  # [cols, rows]
    moving = parameters_move(search)
    fixed = {} if moving else {"d": place.lines(start)[0]}
    given = (fixed or start.params).items()  # a copy of each: they move, `start` must stay
    params = {name: v.to(torch.float32, copy=True).t().contiguous() for name, v in given}
    cols = len(chosen)
    gradient = moments @ (place.values(start) - w).t()
    for _ in range(sweeps):
        for span in panels.columns:
            change = descend(
                gradient[span],
                moments[span, span],
                chosen[span],
                _state(params, span, cols),
                search,
                parameters=not panels.whole_rows,
                body=task.setting.body,
            )
            gradient += moments[:, span] @ change
        if panels.whole_rows and moving:
            refit(gradient, moments, chosen, _state(params, slice(0, cols), cols), search)
    kept = _stored(params, start.params) if moving else start.params
    codes = torch.searchsorted(levels, chosen).to(torch.uint8).t().contiguous()
    return Coded(codes, kept)


def _stored(params: Params, like: Params) -> Params:
    return {name: v.t().contiguous().to(like[name].dtype) for name, v in params.items()}


def _state(params: Params, span: slice, cols: int) -> State:
    """Views of the parameters of some columns: what the kernel changes is changed in `params`."""

    def view(name: str) -> torch.Tensor:
        values = params[name]
        per = cols // len(values)
        return values[span.start // per : max(span.stop // per, span.start // per + 1)]

    offset = next((view(name) for name in ("mins", "m", "zero") if name in params), NONE)
    if "scales" not in params:
        return State(view("d"), offset)
    dmin = view("dmin")[0] if "dmin" in params else NONE
    return State(view("scales"), offset, view("d")[0], dmin)


ROUND = Descent()
