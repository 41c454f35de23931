"""Where a linear is solved: by the methods of its grid on the processor, by kernels on a device.

Algorithms hold tensors, whatever the device, and ask here for what belongs to the grid. On a CUDA
device a grid that fits by the kernels' own search is searched and decoded there (the same codes);
any other goes through the processor and back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from qconvert.algorithms.slots import Fit, Setting, Task
from qconvert.formats.grid import Grid, ScaleOverflow
from qconvert.formats.minifloat import MiniFloatGrid, float_search
from qconvert.formats.ragged import lacking
from qconvert.formats.tensor import QuantizedTensor
from qconvert.kernels import fit as kernels
from qconvert.kernels import lines, small_floats
from qconvert.kernels.bodies import Body, body_for
from qconvert.kernels.small_floats import FloatSearch


@dataclass(frozen=True, slots=True)
class Coded:
    """A `QuantizedTensor` on a device."""

    codes: torch.Tensor  # uint8 [rows, cols]
    params: Mapping[str, torch.Tensor]  # each [rows, ...], in the types that the grid keeps

    def rows(self, part: slice) -> Coded:
        return Coded(self.codes[part], {name: v[part] for name, v in self.params.items()})


Lines = tuple[torch.Tensor, torch.Tensor | None]
"""Scale and offset of each group, float32 [rows, groups]; None: the grid has no offset."""


class Place(Protocol):
    def fit(self, fit: Fit, w: torch.Tensor, weight: torch.Tensor | None, threads: int) -> Coded:
        """w [rows, cols] of whole groups, weight [cols]; what `fit` makes of them."""
        ...

    def lines(self, coded: Coded) -> Lines: ...
    def values(self, coded: Coded) -> torch.Tensor:
        """What the file stands for, [rows, cols]."""
        ...


def place_of(grid: Grid, device: torch.device, setting: Setting) -> Place:
    body = body_for(device, setting.body)
    if body == "cpu":
        return Host(grid, device)
    if hasattr(grid, "stored"):
        return Device(grid, body)
    search = float_search(grid) if isinstance(grid, MiniFloatGrid) else None
    return Host(grid, device) if search is None else SmallFloats(grid, search, body)


def away(tensor: QuantizedTensor, device: torch.device) -> Coded:
    """On `device`; on the processor the memory is shared."""
    return Coded(_on(tensor.codes, device), {n: _on(v, device) for n, v in tensor.params.items()})


def home(grid: Grid, coded: Coded) -> QuantizedTensor:
    """The inverse of `away`."""
    params = {name: values.cpu().numpy() for name, values in coded.params.items()}
    return QuantizedTensor(grid.name, coded.codes.cpu().numpy(), params)


def values_of(
    grid: Grid, tensor: QuantizedTensor, device: torch.device, setting: Setting
) -> torch.Tensor:
    """The values that the file stands for, on `device`."""
    return place_of(grid, device, setting).values(away(tensor, device))


def decoded(task: Task, tensor: QuantizedTensor) -> torch.Tensor:
    """`values_of` the task's tensor, on its device."""
    return values_of(task.grid, tensor, task.w.device, task.setting)


@dataclass(frozen=True, slots=True)
class Host:
    """Satisfies `Place`, by the grid's own methods."""

    grid: Grid
    device: torch.device  # of the tensors that are given and asked for

    def fit(self, fit: Fit, w: torch.Tensor, weight: torch.Tensor | None, threads: int) -> Coded:
        importance = None if weight is None else weight.cpu().numpy()
        return away(fit(self.grid, w.cpu().numpy(), importance, threads), self.device)

    def lines(self, coded: Coded) -> Lines:
        found = self.grid.lines(home(self.grid, coded))
        offset = None if found.offset is None else _on(found.offset, self.device)
        return _on(found.scale, self.device), offset

    def values(self, coded: Coded) -> torch.Tensor:
        return _on(self.grid.decode(home(self.grid, coded)), self.device)


@dataclass(frozen=True, slots=True)
class Device:
    """Satisfies `Place`, by kernels. `grid` satisfies `formats.grid.Searched` too."""

    grid: Any
    body: Body

    def fit(self, fit: Fit, w: torch.Tensor, weight: torch.Tensor | None, threads: int) -> Coded:
        if not getattr(fit, "searches", False):  # a fit of another kind is not the grid's own
            return Host(self.grid, w.device).fit(fit, w, weight, threads)
        search = self.grid.search
        search = search if search.size else replace(search, size=w.shape[1])
        codes, found = kernels.fit(w, weight, search, body=self.body)
        kept = self.grid.stored({name: v.cpu().numpy() for name, v in found.items()})
        return Coded(codes, {name: _on(values, w.device) for name, values in kept.items()})

    def lines(self, coded: Coded) -> Lines:
        return lines.lines_of(self.grid.search, coded.params, body=self.body)

    def values(self, coded: Coded) -> torch.Tensor:
        (scale, offset), cols = self.lines(coded), coded.codes.shape[1]
        codes = torch.nn.functional.pad(coded.codes, (0, lacking(cols, self.grid.group)))
        return lines.decoded(codes, scale, offset, self.grid.levels, body=self.body)[:, :cols]


@dataclass(frozen=True, slots=True)
class SmallFloats:
    """Satisfies `Place`, by kernels, for grids of small floats."""

    grid: Grid
    search: FloatSearch
    body: Body

    def fit(self, fit: Fit, w: torch.Tensor, weight: torch.Tensor | None, threads: int) -> Coded:
        if not getattr(fit, "searches", False):
            return Host(self.grid, w.device).fit(fit, w, weight, threads)
        known = None if weight is None else _on(kernels.usable(weight.cpu().numpy()), w.device)
        coded = Coded(*small_floats.fit(w, known, self.search, body=self.body))
        if not bool(self.lines(coded)[0].isfinite().all()):
            raise ScaleOverflow(f"{self.grid.name}: a scale is beyond what it is stored as")
        return coded

    def lines(self, coded: Coded) -> Lines:
        return small_floats.scale_of(dict(coded.params), self.search), None

    def values(self, coded: Coded) -> torch.Tensor:
        scale, _ = self.lines(coded)
        return lines.decoded(coded.codes, scale, None, self.grid.levels, body=self.body)


def _on(values: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(device)
