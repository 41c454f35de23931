"""The two ends of a model: the matrix that tokens are looked up in, and the head that makes logits.

What is quantized of them is optimised as the linears of the blocks are, by the quadratic form that
its errors show in (`metric`). A head reads what the final norm makes of the rows that leave the
last block, as quantized. Where it is the embedding too, its codes must be there before the first
block, as the blocks read what they stand for: then some rows go ahead through the float model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from qconvert.algorithms.slots import Setting
from qconvert.codes import Fitted
from qconvert.engine.metric import both, lookup
from qconvert.engine.observe import Pair
from qconvert.engine.outer import PARTS, write_outer
from qconvert.engine.pieces import Piece
from qconvert.engine.record import LinearRecord
from qconvert.engine.solve import solve
from qconvert.engine.store import Outer
from qconvert.engine.work import Work
from qconvert.formats.source import Source, SourceTensor
from qconvert.formats.target import OutputTensor, Plan
from qconvert.formats.tensor import QuantizedTensor
from qconvert.recipe import Recipe

ROWS = 8192
"""Rows that are solved together. So many make the factors of the moments cheap beside them."""


@dataclass(frozen=True, slots=True)
class Roles:
    """What a plan makes of the ends: outputs that are quantized, by what they are read as."""

    table: OutputTensor  # that tokens are looked up in, quantized or not
    lookups: tuple[OutputTensor, ...]
    heads: tuple[OutputTensor, ...]
    ties: tuple[OutputTensor, ...]  # both in one

    @classmethod
    def of(cls, source: Source, plan: Plan) -> Roles:
        """A tied matrix that is stored twice is looked up as it is first stored; twice on the same
        grid, it has the same codes in both places."""
        weights = [one for one in plan.tensors if one.source and one.source.part == "weight"]
        table, *again = [one for one in weights if _role(one) == "embedding"]
        heads = [*again, *(one for one in weights if _role(one) == "head")]
        tied = any(_same(table, one) for one in again) if again else source.tied
        return cls(
            table,
            () if tied else _quantized([table]),
            _quantized([one for one in heads if not _same(table, one)]),
            _quantized([table]) if tied else (),
        )

    @property
    def optimised(self) -> tuple[OutputTensor, ...]:
        """All of them."""
        return (*self.lookups, *self.ties, *self.heads)

    @property
    def ahead(self) -> tuple[OutputTensor, ...]:
        """Those that need what a head reads, before the blocks."""
        return (*self.ties, *(one for one in self.heads if _role(one) == "embedding"))

    @property
    def behind(self) -> tuple[OutputTensor, ...]:
        """Heads of their own."""
        return tuple(one for one in self.heads if _role(one) == "head")


def _quantized(outputs: Sequence[OutputTensor]) -> tuple[OutputTensor, ...]:
    return tuple(one for one in outputs if one.grid is not None)


def _same(one: OutputTensor, other: OutputTensor) -> bool:
    """Whether they share their codes."""
    if one.grid is None or other.grid is None or one.source != other.source:
        return False
    return one.grid.name == other.grid.name


def _role(output: OutputTensor) -> str:
    assert output.source is not None
    return output.source.role


def setting_for(setting: Setting) -> Setting:
    """How the ends are solved: with more effort, the error on held-out rows fell by 4 %, and the KL
    did not; and they have as many weights as several blocks."""
    return replace(setting, effort=max(0, setting.effort - 1))


Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Ends:
    """Writes what lies outside the blocks; what is no embedding or head, without data."""

    source: Source
    plan: Plan
    recipe: Recipe
    setting: Setting
    device: torch.device
    work: Work
    tell: Tell
    unchanged: bool  # `source` gives the values of the checkpoint, without a global transform
    roles: Roles = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "roles", Roles.of(self.source, self.plan))

    @property
    def missing(self) -> tuple[Outer, ...]:
        return tuple(part for part in PARTS if not self.work.valid(part))

    @property
    def sees_ahead(self) -> bool:
        """Whether "before" needs the moments of what the head reads."""
        return self.recipe.calibrated and bool(self.roles.ahead)

    @property
    def sees_behind(self) -> bool:
        """Whether "after" needs them."""
        return self.recipe.calibrated and bool(self.roles.behind)

    def before(self, ahead: Pair | None) -> None:
        """Finish the part before the blocks. `ahead`: see `sees_ahead`."""
        metrics: dict[str, Pair] = {}
        if self.recipe.calibrated and (self.roles.lookups or self.roles.ties):
            seen = lookup(self.source, self.device)
            metrics |= {one.name: Pair(seen, seen) for one in self.roles.lookups}
            if ahead is not None:
                metrics |= {one.name: both(ahead, seen) for one in self.roles.ties}
        if ahead is not None:
            metrics |= {one.name: ahead for one in self.roles.heads if _role(one) == "embedding"}
        self._write("before", metrics)

    def after(self, behind: Pair | None) -> None:
        """Finish the part after the blocks. `behind`: see `sees_behind`."""
        metrics = {} if behind is None else {one.name: behind for one in self.roles.behind}
        self._write("after", metrics)

    def rows(self, tensor: SourceTensor, start: int, stop: int) -> NDArray[np.float32]:
        """As `Source.rows`, of the embedding what its codes stand for, once they are there."""
        table = self.roles.table
        if table.grid is None or table.source != tensor:
            return self.source.rows(tensor, start, stop)
        part = self.work.store.read("before")
        return table.grid.decode(part.quantized(tensor.name, table.grid.name, start, stop))

    def _write(self, part: Outer, metrics: Mapping[str, Pair]) -> None:
        found = dict[str, list[LinearRecord]]()
        makers = {
            one.name: partial(self._solved, one, metrics[one.name], found.setdefault(one.name, []))
            for one in self.plan.tensors
            if one.name in metrics
        }

        def told() -> None:
            self.work.tell_outer(part, [_joined(records) for records in found.values()])

        common = (self.work, part, self.source, self.plan, self.setting.threads)
        write_outer(*common, makers, told, unchanged=self.unchanged)

    def _solved(
        self, output: OutputTensor, metric: Pair, told: list[LinearRecord]
    ) -> Iterator[QuantizedTensor]:
        """The codes of all rows, some at a time; what there is to tell of each goes to `told`."""
        tensor, grid = output.source, output.grid
        assert tensor is not None
        assert grid is not None
        grid = Fitted(self.source).bound(output, grid)
        setting = setting_for(self.setting)
        for start in range(0, tensor.shape[0], ROWS):
            self.tell(f"{tensor.role}: optimising")
            stop = min(start + ROWS, tensor.shape[0])
            w = torch.from_numpy(self.source.rows(tensor, start, stop)).to(self.device)
            pieces = [Piece(np.arange(stop - start), metric.fit, metric.held)]
            done = solve(tensor.name, tensor.role, w, pieces, grid, self.recipe, setting)
            told.append(done.record)
            yield done.tensor


def _joined(records: Sequence[LinearRecord]) -> LinearRecord:
    """Of all rows together; all but the last have as many of them, which is near enough."""
    count = len(records)
    return replace(
        records[0],
        plain_error=sum(one.plain_error for one in records) / count,
        error=sum(one.error for one in records) / count,
        steps=max((one.steps for one in records), key=len),
    )
