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
    with the least error on held-out rows is kept."""

    dampings: Sequence[float] = (0.01, 0.03, 0.003)
    name: str = "gptq"
    summary: str = "columns in turn, each error made good by the columns after it (GPTQ, 2022)"

    def __call__(self, task: Task, fit: Fit, start: QuantizedTensor | None) -> QuantizedTensor:
        best, least = None, float("inf")
        for damping in self.dampings[: 1 + task.setting.effort]:
            tensor = fed_back(task, fit, factor(damped(task.second, damping), task.name))
            error = output_error(decoded(task, tensor), task, task.held)
            if best is None or error < least:
                best, least = tensor, error
        assert best is not None
        return best


def fed_back(task: Task, fit: Fit, upper: torch.Tensor) -> QuantizedTensor:
    """One pass over all columns with the factor U, H^-1 = U'U; rows in parts that threads share."""
    panels = Panels.of(task)
    left = (1 / upper.diagonal().square()).cpu().numpy()
    whole = None
    if panels.whole_rows:  # parameters of a whole row cannot wait for its columns
        whole = fit(task.grid, task.w.cpu().numpy(), left, task.setting.threads)

    def part(rows: slice) -> QuantizedTensor:
        frozen = None if whole is None else whole.take_rows(rows)
        return _part(task, fit, panels, upper, left, task.w[rows], frozen)

    return joined(panels.map(part), axis=0)


def _part(
    task: Task,
    fit: Fit,
    panels: Panels,
    upper: torch.Tensor,
    left: Floats,
    w: torch.Tensor,
    frozen: QuantizedTensor | None,
) -> QuantizedTensor:
    rest = w.t().clone(memory_format=torch.contiguous_format)  # [cols, rows]
    found = []
    for cols in panels.columns:
        now = rest[cols].cpu().numpy()
        if frozen is None:
            tensor = fit(task.grid, np.ascontiguousarray(now.T), left[cols], 1)
        else:
            tensor = QuantizedTensor(task.grid.name, frozen.codes[:, cols], frozen.params)
        lines = task.grid.lines(tensor)
        codes, errors = feed_back(
            now,
            upper[cols, cols].cpu().numpy(),
            np.ascontiguousarray(lines.scale.T),
            None if lines.offset is None else np.ascontiguousarray(lines.offset.T),
            task.grid.levels,
        )
        found.append(QuantizedTensor(tensor.grid, np.ascontiguousarray(codes.T), tensor.params))
        beyond = slice(cols.stop, None)
        if cols.stop < len(rest):
            rest[beyond] -= upper[cols, beyond].t() @ torch.from_numpy(errors).to(rest.device)
    return joined(found, axis=1, params=None if frozen is None else frozen.params)


ROUND = Gptq()
