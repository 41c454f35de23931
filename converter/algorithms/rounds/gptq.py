"""GPTQ: each column is rounded in turn, and the columns after it make good its error.

Frantar et al. 2022 (the same as LDLQ of QuIP, Chee et al. 2023), on a grid whose parameters are
fixed by a format: those of a panel are fitted when its turn comes, to the weights as the columns
before it have left them, and frozen before the first of its columns is rounded. The importance in
that fit is what is left of each column's second moment once the columns after it have adapted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from qconvert.algorithms.curvature import damped, decoded, factor, output_error
from qconvert.algorithms.panels import Panels, joined
from qconvert.algorithms.slots import Fit, Task
from qconvert.formats.tensor import QuantizedTensor
from qconvert.kernels.descent import feed_back

Floats = NDArray[np.float32]


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
            moments = damped(task.second, damping)[order.all][:, order.all]
            tensor = fed_back(task, fit, factor(moments, task.name), order)
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
    panels = Panels.of(task)
    left = torch.empty_like(upper.diagonal())
    left[order.all] = 1 / upper.diagonal().square()
    weight = left.cpu().numpy()
    whole = None
    if panels.whole_rows:  # parameters of a whole row cannot wait for its columns
        whole = fit(task.grid, task.w.cpu().numpy(), weight, task.setting.threads)

    def part(rows: slice) -> QuantizedTensor:
        frozen = None if whole is None else whole.take_rows(rows)
        return _part(task, fit, order, upper, weight, task.w[rows], frozen)

    return joined(panels.map(part), axis=0)


def _part(
    task: Task,
    fit: Fit,
    order: Order,
    upper: torch.Tensor,
    left: Floats,
    w: torch.Tensor,
    frozen: QuantizedTensor | None,
) -> QuantizedTensor:
    """`upper` in the order of processing, all else as the file has it."""
    rest = w.t()[order.all]  # [cols, rows]
    found, start = {}, 0
    codes = np.empty(w.shape, np.uint8)
    for panel in order.panels:
        stop = start + len(panel)
        now, columns = rest[start:stop].cpu().numpy(), panel.cpu().numpy()
        if frozen is None:
            rank, natural = np.argsort(columns), np.sort(columns)
            tensor = fit(task.grid, np.ascontiguousarray(now[rank].T), left[natural], 1)
            found[int(natural[0])] = tensor
            at = columns - natural[0]
        else:
            tensor, at = frozen, columns
        lines = task.grid.lines(tensor)
        group = at // (tensor.shape[1] // lines.scale.shape[1])
        codes_, errors = feed_back(
            now,
            upper[start:stop, start:stop].cpu().numpy(),
            np.ascontiguousarray(lines.scale.T[group]),
            None if lines.offset is None else np.ascontiguousarray(lines.offset.T[group]),
            task.grid.levels,
        )
        codes[:, columns] = codes_.T
        rest[stop:] -= upper[start:stop, stop:].t() @ torch.from_numpy(errors).to(rest.device)
        start = stop
    if frozen is not None:
        return QuantizedTensor(task.grid.name, codes, frozen.params)
    parts = joined([found[first] for first in sorted(found)], axis=1)
    return QuantizedTensor(parts.grid, codes, parts.params)


ROUND = Gptq()
