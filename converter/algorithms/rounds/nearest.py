"""Rounding to nearest: the fit alone, weighted by how strong each input channel is."""

from __future__ import annotations

from dataclasses import dataclass

from qconvert.algorithms.place import home, place_of
from qconvert.algorithms.slots import Fit, Task
from qconvert.formats.tensor import QuantizedTensor


@dataclass(frozen=True, slots=True)
class Nearest:
    """The fit, with the mean square of each input channel as its importance."""

    name: str = "nearest"
    summary: str = "the nearest codes, importance by the mean square of each input channel"

    def __call__(self, task: Task, fit: Fit, start: QuantizedTensor | None) -> QuantizedTensor:
        importance = task.second.diagonal().clamp_min(0)
        weight = importance if bool(importance.any()) else None
        place = place_of(task.grid, task.w.device, task.setting)
        return home(task.grid, place.fit(fit, task.w, weight, task.setting.threads))


ROUND = Nearest()
