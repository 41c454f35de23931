"""A finished work folder as a model: float tensors by rows, and codes that are never made again.

It satisfies `formats.source.Source`, so a target plans from it as from a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.engine.copies import copied_folder
from qconvert.engine.journal import NAME, read_journal
from qconvert.engine.parts import COLUMNS, Part
from qconvert.engine.reads import READS
from qconvert.engine.store import Store, Which
from qconvert.formats.known_grids import grid_named
from qconvert.formats.refusal import refuse
from qconvert.formats.source import DTYPES, SourceTensor
from qconvert.formats.target import Statistic
from qconvert.formats.tensor import QuantizedTensor


@dataclass(frozen=True, slots=True)
class Bundle:
    """A quantized model that belongs to no format yet. Its facts are those it was quantized with,
    which a rotation may have changed."""

    folder: Path  # configuration and tokenizer, under the name of the model's own folder
    store: Store
    _places: Mapping[str, Which]  # the part that each tensor is in

    @property
    def config(self) -> Mapping[str, Any]:
        return self.store.journal.config

    @property
    def model_type(self) -> str:
        return self.store.journal.model_type

    @property
    def tied(self) -> bool:
        return self.store.journal.tied

    @property
    def tensors(self) -> tuple[SourceTensor, ...]:
        return self.store.journal.tensors

    @property
    def notes(self) -> tuple[str, ...]:
        return self.store.journal.notes

    @property
    def target(self) -> str:
        """The target that it was planned for."""
        return self.store.journal.target

    @property
    def type(self) -> str:
        """The type of that target."""
        return self.store.journal.type

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the weights are read from."""
        return tuple(self.store.path(which) for which in self.store.parts)

    def grids_of(self, name: str) -> tuple[str, ...]:
        """The grids that a tensor has codes on: several where a tied head has its own."""
        return tuple(kind for kind in self.store.journal.forms[name] if kind not in DTYPES)

    def grid_of(self, name: str) -> str | None:
        """The first of `grids_of`; None for a tensor in float."""
        return next(iter(self.grids_of(name)), None)

    def quantized(
        self, name: str, start: int, stop: int, grid: str | None = None
    ) -> QuantizedTensor | None:
        """Codes and parameters of rows [start, stop) on `grid` (the only one, unless a tied head
        has its own); None where there are none."""
        kinds = self.grids_of(name)
        kind = next(iter(kinds), None) if grid is None else grid
        if kind not in kinds:
            return None
        return self._part(name).quantized(name, kind, start, stop)

    def rows(self, tensor: SourceTensor, start: int, stop: int) -> NDArray[np.float32]:
        """Rows as float32: as stored, or what the codes stand for, with the scale of the columns
        that the linear has besides. Vectors count as one row."""
        part = self._part(tensor.name)
        if len(tensor.shape) == 1:
            return part.floats(tensor.name)
        if part.has_floats(tensor.name):
            return part.floats(tensor.name, start, stop)
        return self.decoded(tensor.name, start, stop)

    def decoded(
        self, name: str, start: int, stop: int, grid: str | None = None
    ) -> NDArray[np.float32]:
        """What the codes of rows [start, stop) on `grid` stand for (as `quantized`; there must be
        some), with the scale of the columns that the linear has besides."""
        found = self.quantized(name, start, stop, grid)
        assert found is not None
        values, scale = grid_named(found.grid).decode(found), self.column_scale(name)
        return values if scale is None else values * scale

    def in_float(self, name: str) -> bool:
        """Whether it keeps float values of a tensor, beside codes or without."""
        return self._part(name).has_floats(name)

    def largest(self, statistic: Statistic) -> float:
        """The largest magnitude that was seen in calibration, or what a fixed scale is to reach to
        by another rule; `Refused` where none was kept."""
        found = {one.name: one for one in self.tensors}.get(statistic.tensor)
        kind: str | None = statistic.kind
        if kind == "input":
            kind = READS.get(found.role) if found is not None else None
        if found is None or found.block is None or kind is None:
            raise refuse(
                f"{self.store.folder} keeps no largest {statistic.kind} for {statistic.tensor}",
                "only linears of its blocks have one: leave that tensor in float",
            )
        known = self.store.record(found.block).largest
        if kind not in known:
            raise refuse(
                f"{self.store.folder} was made without the largest magnitudes of activations,"
                f" such as the {statistic.kind} of {statistic.tensor}",
                "calibrate the model again, in a new work folder",
            )
        return known[kind]

    def column_scale(self, name: str) -> NDArray[np.float32] | None:
        """The scale [in] by which what the linear with the weight `name` reads is multiplied;
        None where the weight has taken in all scales. Exact in float16 and bfloat16."""
        return self._part(name).columns(name)

    @property
    def scaled(self) -> tuple[str, ...]:
        """The weights that have a `column_scale`."""
        places: list[str] = self.store.journal.fingerprint.get(COLUMNS, [])
        return tuple(name for name in places if self.column_scale(name) is not None)

    def _part(self, name: str) -> Part:
        return self.store.read(self._places[name])


def recognises(path: Path) -> bool:
    """True when `path` is a work folder, finished or not."""
    return (path / NAME).is_file() and (path / "blocks").is_dir()


def open_bundle(path: Path) -> Bundle:
    """A finished work folder; `Refused` when something is missing yet, or its job file or copies
    are damaged. Weights are checked when they are first read."""
    if not recognises(path):
        raise refuse(f"{path} is not a work folder", "name one that --keep-work has kept")
    journal = read_journal(path)
    store = Store(path, journal)
    missing = store.missing()
    if missing:
        parts = len(store.parts)
        raise refuse(
            f"{path} is not finished: {len(missing)} of {parts} parts are missing, "
            f"the first is {store.path(missing[0]).relative_to(path)}",
            f"give the command that began it again, with --work {path}: it goes on from there",
        )
    places = {one.name: which for which in store.parts for one in journal.part(which)}
    return Bundle(copied_folder(path / "source", journal.files), store, places)
