"""Learned rounding: the codes of all linears of a block, by the gradient of the block's output.

Cheng et al. 2023, "Optimize Weight Rounding via Signed Gradient Descent" (AutoRound): each weight w
gets the code round(w / scale + v), and v takes small steps against the sign of the gradient, which
passes through the rounding as if it were not there. The paper starts at v = 0, from the nearest
codes. Here the start is whatever the rounds before found: v is measured from its codes, and a code
can move by one. A weight whose code is not its nearest begins as near to the border between two
codes as it would on the other side of it. Parameters stay as they are: `learned` needs codes and
lines alone, so it works on every grid, tables of levels included, where positions in the table
stand for w / scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from qconvert.algorithms.slots import BlockTask, Setting
from qconvert.formats.grid import Grid
from qconvert.formats.nearest import inverse
from qconvert.formats.ragged import lacking
from qconvert.formats.tensor import QuantizedTensor


@dataclass(frozen=True, slots=True)
class Learned:
    """`iterations` at effort 1, times the effort up to `most`; each looks at `batch` rows. Steps
    shrink linearly to nothing, and a weight that always goes one way comes `reach` codes far.

    Every `every` iterations the error of the held rows is looked at, and the best codes are kept.
    The paper goes on from where it is; from codes that are good already that leads astray, as all
    weights take steps of one size. So here what has raised the error is taken back and steps become
    `retreat` times as large; after what has not, `advance` times. 1 for both: the paper."""

    iterations: int = 50
    most: int = 200  # as in the paper
    batch: int = 8
    reach: float = 0.5
    margin: float = 0.49  # how far from its first code a weight begins at most
    every: int = 2
    retreat: float = 0.5
    advance: float = 1.5
    name: str = "learned"
    summary: str = "rounding by signed gradients of the block's output (AutoRound, 2023)"

    def __call__(
        self, task: BlockTask, start: Mapping[str, QuantizedTensor]
    ) -> Mapping[str, QuantizedTensor]:
        moving = {
            role: _Moving.of(tensor, task.weights[role], task.grids[role], self.margin)
            for role, tensor in start.items()
        }
        least, stretch = task.error.mean(_values(moving), task.held), 1.0
        best = {role: one.offset.clone() for role, one in moving.items()}
        count = min(self.most, self.iterations * max(1, task.setting.effort))
        for done, rows in enumerate(_batches(task.fit, self.batch, count, task.setting), 1):
            slopes = task.error.slopes(_values(moving), rows)
            step = stretch * 2 * self.reach / count * (1 - (done - 1) / count)
            for role, one in moving.items():
                one.move(slopes[role], step)
            del slopes
            if done % self.every and done < count:
                continue
            error = task.error.mean(_values(moving), task.held)
            if error <= least:
                least, stretch = error, stretch * self.advance
                _copy(moving, best)
            elif self.retreat < 1:
                stretch *= self.retreat
                for role, one in moving.items():
                    one.offset.copy_(best[role])
        for role, one in moving.items():
            one.offset.copy_(best[role])
        return {
            role: QuantizedTensor(tensor.grid, moving[role].codes(), tensor.params)
            for role, tensor in start.items()
        }


@dataclass(slots=True)
class _Moving:
    """One linear on the way. `offset`: how far the position of each weight is from its first code;
    all on the device of the weights."""

    first: torch.Tensor  # uint8 [rows, cols]
    offset: torch.Tensor  # float32 [rows, cols], changed in place
    scale: torch.Tensor  # [rows, groups]
    shift: torch.Tensor | None  # [rows, groups]
    levels: torch.Tensor
    group: int  # columns of each, of the last perhaps fewer; 0: the whole row

    @classmethod
    def of(cls, start: QuantizedTensor, w: torch.Tensor, grid: Grid, margin: float) -> _Moving:
        lines, device = grid.lines(start), w.device
        first = torch.from_numpy(np.ascontiguousarray(start.codes)).to(device)
        shift = None if lines.offset is None else torch.from_numpy(lines.offset).to(device)
        by = torch.from_numpy(inverse(lines.scale)).to(device)
        at = _grouped(w, grid.group)
        at = at * by[..., None] if shift is None else (at - shift[..., None]) * by[..., None]
        levels = torch.tensor(grid.levels, device=device)
        offset = _positions(_columns(at, w.shape).contiguous(), levels).sub_(first)
        turned = offset.sign() * (1 - offset.abs()).clamp_(min=0)
        offset = torch.where(offset.abs() > 0.5, turned, offset).clamp_(-margin, margin)
        scale = torch.from_numpy(lines.scale).to(device)
        return cls(first, offset, scale, shift, levels, grid.group)

    def move(self, slope: torch.Tensor, step: float) -> None:
        """Against the gradient by the value of each weight."""
        by = _grouped(slope.sign(), self.group).mul_(self.scale.sign()[..., None])
        self.offset.sub_(_columns(by, slope.shape), alpha=step).clamp_(-1, 1)

    def positions(self) -> torch.Tensor:
        return self.offset.add(self.first).round_().clamp_(0, len(self.levels) - 1)

    def codes(self) -> NDArray[np.uint8]:
        return self.positions().to(torch.uint8).cpu().numpy()

    def values(self) -> torch.Tensor:
        """What the codes stand for, as `Grid.decode` computes it."""
        found = _grouped(self.levels[self.positions().int()], self.group)
        found.mul_(self.scale[..., None])
        if self.shift is not None:
            found.add_(self.shift[..., None])
        return _columns(found, self.first.shape)


def _copy(moving: Mapping[str, _Moving], into: Mapping[str, torch.Tensor]) -> None:
    for role, one in moving.items():
        into[role].copy_(one.offset)


def _values(moving: Mapping[str, _Moving]) -> dict[str, torch.Tensor]:
    return {role: one.values() for role, one in moving.items()}


def _grouped(x: torch.Tensor, group: int) -> torch.Tensor:
    """x [rows, cols] as [rows, groups, columns of a group], with zeros where the last is short."""
    more = lacking(x.shape[1], group)
    whole = torch.nn.functional.pad(x, (0, more)) if more else x
    return whole.reshape(len(x), -1, group or x.shape[1])


def _columns(groups: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The inverse of `_grouped`."""
    return groups.reshape(shape[0], -1)[:, : shape[1]]


def _positions(at: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Where `at` lies in the table: 2.5 halfway from the level with index 2 to the next. Ends of
    the table are ends."""
    below = torch.searchsorted(levels, at, right=True).sub_(1).clamp_(0, len(levels) - 2)
    low = levels[below]
    return at.sub(low).div_(levels[below + 1] - low).clamp_(0, 1).add_(below)


def _batches(
    rows: Sequence[int], size: int, count: int, setting: Setting
) -> Iterator[Sequence[int]]:
    """`count` batches; all rows are seen once, in an order by chance, before any is seen again."""
    random = np.random.default_rng(setting.seed)
    left: list[int] = []
    for _ in range(count):
        batch: list[int] = []
        while len(batch) < min(size, len(rows)):
            left = left or [rows[at] for at in random.permutation(len(rows))]
            batch.append(left.pop())
        yield sorted(batch)


BLOCK = Learned()
