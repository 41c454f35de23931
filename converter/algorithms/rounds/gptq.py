"""GPTQ: each column is rounded in turn, and the columns after it make good its error.

Frantar et al. 2022 (the same as LDLQ of QuIP, Chee et al. 2023), on a grid whose parameters are
fixed by a format: those of a panel are fitted when its turn comes, to the weights as the columns
before it have left them, and frozen before the first of its columns is rounded. The importance in
that fit is what is left of each column's second moment once the columns after it have adapted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from qconvert.algorithms.curvature import damped, factor, output_error
from qconvert.algorithms.panels import Panels, joined
from qconvert.algorithms.place import Coded, Place, decoded, home, place_of
from qconvert.algorithms.slots import Fit, Task
from qconvert.formats.tensor import QuantizedTensor
from qconvert.kernels.descent import feed_back


@dataclass(frozen=True, slots=True)
class Gptq:
    """`dampings`: those that are tried, as shares of the mean of the moments' diagonal; the one
    with the least error on held-out rows is kept. `ordered`: strong columns first."""

    dampings: Sequence[float] = (0.01, 0.03, 0.003)
    ordered: bool = True
    name: str = "gptq"
    summary: str = "columns in turn, each error made good by the columns after it (GPTQ, 2022)"

    def __call__(self, task: Task, fit: Fit, start: QuantizedTensor | None) -> QuantizedTensor:
        best, least = None, float("inf")
        order = _order(task) if self.ordered else _natural(task)
        for damping in self.dampings[: 1 + task.setting.effort]:
            moments = damped(task.second, damping, order.all)
            upper = factor(moments, task.name, task.setting.threads)
            del moments  # as large as all else together where a linear is wide
            tensor = fed_back(task, fit, upper, order)
            error = output_error(decoded(task, tensor), task, task.held)
            if best is None or error < least:
                best, least = tensor, error
        assert best is not None
        return best


@dataclass(frozen=True, slots=True)
class Order:
    """In what order columns are processed: `panels` of columns that are neighbours in the file, and
    in each its columns in their order."""

    panels: Sequence[torch.Tensor]

    @property
    def all(self) -> torch.Tensor:
        return torch.cat(list(self.panels))


def _natural(task: Task) -> Order:
    columns = torch.arange(task.w.shape[1], device=task.w.device)
    return Order([columns[panel] for panel in Panels.of(task).columns])


def _order(task: Task) -> Order:
    """The strongest columns first, by the diagonal of the moments: panels by their mean, and the
    columns within a panel. What is processed early is made good by all that comes after it. Groups
    and panels stay whole, as the format wants their parameters before a column is rounded."""
    power = task.second.diagonal()
    if Panels.of(task).whole_rows:
        strong = torch.sort(power, descending=True, stable=True)[1]
        return Order([strong[panel] for panel in Panels.of(task).columns])
    panels = [
        panel[torch.sort(power[panel], descending=True, stable=True)[1]]
        for panel in _natural(task).panels
    ]
    return Order(sorted(panels, key=lambda panel: -float(power[panel].mean())))


def fed_back(task: Task, fit: Fit, upper: torch.Tensor, order: Order) -> QuantizedTensor:
    """One pass over all columns with the factor U, H^-1 = U'U, of H in `order`; rows in parts that
    threads share."""
    panels, place = Panels.of(task), place_of(task.grid, task.w.device, task.setting)
    left = torch.empty_like(upper.diagonal())
    left[order.all] = 1 / upper.diagonal().square()
    whole = None
    if panels.whole_rows:  # parameters of a whole row cannot wait for its columns
        whole = place.fit(fit, task.w, left, task.setting.threads)

    def part(rows: slice) -> QuantizedTensor:
        frozen = None if whole is None else whole.rows(rows)
        return _part(task, place, fit, order, upper, left, task.w[rows], frozen)

    return joined(panels.map(part))


def _part(
    task: Task,
    place: Place,
    fit: Fit,
    order: Order,
    upper: torch.Tensor,
    left: torch.Tensor,
    w: torch.Tensor,
    frozen: Coded | None,
) -> QuantizedTensor:
    """`upper` in the order of processing, all else as the file has it."""
    rest = w.t()[order.all]  # [cols, rows]
    found, start = {}, 0
    codes = torch.empty(w.shape, dtype=torch.uint8, device=w.device)
    for columns in order.panels:
        stop = start + len(columns)
        now = rest[start:stop]
        if frozen is None:
            natural, rank = torch.sort(columns)
            coded = place.fit(fit, now[rank].t().contiguous(), left[natural], 1)
            found[int(natural[0])] = coded
            at = columns - natural[0]
        else:
            coded, at = frozen, columns
        scale, offset = place.lines(coded)
        group = at // (coded.codes.shape[1] // scale.shape[1])
        codes_, errors = feed_back(
            now,
            upper[start:stop, start:stop],
            scale.t()[group],
            None if offset is None else offset.t()[group],
            task.grid.levels,
            body=task.setting.body,
        )
        codes[:, columns] = codes_.t()
        rest[stop:] -= upper[start:stop, stop:].t() @ errors
        start = stop
    if frozen is not None:
        return home(task.grid, Coded(codes, frozen.params))
    parts = [found[first].params for first in sorted(found)]
    params = {name: torch.cat([one[name] for one in parts], dim=1) for name in parts[0]}
    return home(task.grid, Coded(codes, params))


ROUND = Gptq()
