"""Rounding to nearest: the fit alone, weighted by how strong each input channel is."""

from __future__ import annotations

from dataclasses import dataclass

from qconvert.algorithms.slots import Fit, Task
from qconvert.formats.tensor import QuantizedTensor


@dataclass(frozen=True, slots=True)
class Nearest:
    """The fit, with the mean square of each input channel as its importance."""

    name: str = "nearest"
    summary: str = "the nearest codes, importance by the mean square of each input channel"

    def __call__(self, task: Task, fit: Fit, start: QuantizedTensor | None) -> QuantizedTensor:
        importance = task.second.diagonal().clamp_min(0).cpu().numpy()
        weight = importance if importance.any() else None
        return fit(task.grid, task.w.cpu().numpy(), weight, task.setting.threads)


ROUND = Nearest()
