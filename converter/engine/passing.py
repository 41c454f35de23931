"""Where hidden states wait between two blocks: in a file on the processor, in memory for a device.

A device is so fast that writing the states out after each block would take longer than the block.
There they wait in memory of the host, each row in the place of the one that it came from, and go to
their file now and then: a run that was killed passes rows through at most `EVERY` blocks again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, Protocol

import torch

from qconvert.engine.rows import Shape, kept_rows, mapped_rows, written
from qconvert.engine.work import Work

EVERY = 16
"""Blocks between two writings of the states that wait in memory."""
QUANT: Literal["quant"] = "quant"
"""The stream of states behind quantized blocks."""


class Passing(Protocol):
    """The states [rows, length, hidden], float32, that enter one block after the other."""

    def entering(self, missing: int, hidden: torch.Tensor) -> tuple[int, torch.Tensor]:
        """The last block not after `missing` whose incoming states are kept, and these states;
        block 0 and `hidden`, what enters it, where none are."""
        ...

    def behind(self, index: int, rows: torch.Tensor) -> AbstractContextManager[torch.Tensor]:
        """A tensor to fill with what leaves block `index`, of which `rows` enter. One
        row of it may be written when the same row of `rows` was read, and no sooner."""
        ...

    def left(self, index: int, rows: torch.Tensor) -> torch.Tensor:
        """What `behind` was filled with; the states before it are gone."""
        ...


def passing_of(work: Work, shape: Shape, device: torch.device) -> Passing:
    return OnDisk(work, shape) if device.type == "cpu" else InMemory(work, shape, device)


class OnDisk:
    """Satisfies `Passing`. Each block's states are a file of their own, mapped; one is whole, the
    other is written."""

    def __init__(self, work: Work, shape: Shape) -> None:
        self._work, self._shape = work, shape

    def entering(self, missing: int, hidden: torch.Tensor) -> tuple[int, torch.Tensor]:
        for index in range(missing, 0, -1):
            path = self._work.rows(index, QUANT)
            rows = kept_rows(path, self._shape, self._work.journal.digest)
            if rows is not None:
                return index, rows
        return 0, hidden

    @contextmanager
    def behind(self, index: int, rows: torch.Tensor) -> Iterator[torch.Tensor]:
        path = self._work.rows(index + 1, QUANT)
        with written(path, self._shape, self._work.journal.digest) as out:
            yield out
        self._work.retire_rows(index + 1)

    def left(self, index: int, rows: torch.Tensor) -> torch.Tensor:
        return mapped_rows(self._work.rows(index + 1, QUANT), self._shape)


class InMemory:
    """Satisfies `Passing`. One copy of the states, changed in place."""

    def __init__(self, work: Work, shape: Shape, device: torch.device) -> None:
        self._disk, self._shape, self._device = OnDisk(work, shape), shape, device

    def entering(self, missing: int, hidden: torch.Tensor) -> tuple[int, torch.Tensor]:
        index, rows = self._disk.entering(missing, hidden)
        pinned = self._device.type == "cuda"  # copies to and from such memory are twice as fast
        kept = torch.empty(self._shape, pin_memory=pinned)
        return index, kept.copy_(rows)

    @contextmanager
    def behind(self, index: int, rows: torch.Tensor) -> Iterator[torch.Tensor]:
        yield rows
        if (index + 1) % EVERY == 0:
            with self._disk.behind(index, rows) as out:
                out.copy_(rows)

    def left(self, index: int, rows: torch.Tensor) -> torch.Tensor:
        return rows
