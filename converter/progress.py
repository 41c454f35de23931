"""Progress of long work, for a person at a terminal. Nobody else sees it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qconvert.engine.record import BlockRecord
from qconvert.units import duration, share, size

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import ProgressColumn, TaskID

Progress = Callable[[str, int, int], None]
"""`progress(what, done, total)`: how much of `what` is done, in bytes of the source."""

BlockProgress = Callable[[str, int, int, BlockRecord | None], None]
"""`blocks(what, done, total, record)`: `done` of `total` blocks are finished, `what` is at hand
("block 3: calibrating"). `record` is that of a block that has finished just now, else None. Blocks
that an earlier run had finished are counted in `done` of the first call."""

RECENT = 8  # finished blocks that the remaining time is judged by


def silent(what: str, done: int, total: int) -> None:
    """A `Progress` that shows nothing."""


def silent_blocks(what: str, done: int, total: int, record: BlockRecord | None) -> None:
    """A `BlockProgress` that shows nothing."""


def block_error(record: BlockRecord) -> float | None:
    """The mean relative output error of the block's linears; None when it has none."""
    errors = [linear.error for linear in record.linears]
    return sum(errors) / len(errors) if errors else None


def seconds_left(seconds: Sequence[float], left: int) -> float | None:
    """Time for `left` more blocks, by the mean of the last few; None before the first."""
    recent = seconds[-RECENT:]
    return left * sum(recent) / len(recent) if recent else None


@dataclass(slots=True)
class Bars:
    """Two bars, one shown at a time: the blocks as they are optimised, then bytes written."""

    unit: str = "bytes"
    shown: RichProgress | None = None
    task: TaskID | None = None
    of_blocks: bool = False
    seconds: list[float] = field(default_factory=list)
    last: str = ""

    def amount(self, what: str, done: int, total: int) -> None:
        """A `Progress`."""
        self.open(of_blocks=False)
        self._update(what, done, total)

    def blocks(self, what: str, done: int, total: int, record: BlockRecord | None) -> None:
        """A `BlockProgress`."""
        self.open(of_blocks=True)
        if record is not None:
            self.seconds.append(record.seconds)
            error = block_error(record)
            told = "" if error is None else f"error {share(error)}, "
            self.last = f"{told}peak {size(record.peak_bytes)}"
        left = seconds_left(self.seconds, total - done)
        time = "" if left is None or done == total else f", {duration(left)} left"
        self._update(what, done, total, f"{self.last}{time}")

    def close(self) -> None:
        """Take the bar off the screen."""
        if self.shown is not None:
            self.shown.stop()
        self.shown = self.task = None

    def open(self, *, of_blocks: bool) -> None:
        """Show one of the two, empty, where the other or none is shown."""
        if self.shown is not None and self.of_blocks == of_blocks:
            return
        from rich.console import Console
        from rich.progress import Progress as RichProgress

        self.close()
        columns = _block_columns() if of_blocks else _amount_columns(self.unit)
        self.shown = RichProgress(*columns, console=Console(stderr=True), transient=True)
        self.shown.start()
        self.task = self.shown.add_task("reading headers", total=None, told="")
        self.of_blocks = of_blocks

    def _update(self, what: str, done: int, total: int, told: str = "") -> None:
        assert self.shown is not None
        assert self.task is not None
        self.shown.update(
            self.task, description=what, completed=done, total=total, told=told,
            refresh=self.of_blocks,  # these come seldom: show each
        )  # fmt: skip


def _block_columns() -> tuple[ProgressColumn, ...]:
    """Narrow enough for a terminal of 80 columns."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

    what, told = TextColumn("{task.description:20.20}"), TextColumn("{task.fields[told]}")
    return what, BarColumn(bar_width=8), MofNCompleteColumn(), told


def _amount_columns(unit: str) -> tuple[ProgressColumn, ...]:
    from rich import progress as rich

    if unit == "bytes":
        amount: list[rich.ProgressColumn] = [rich.DownloadColumn(), rich.TransferSpeedColumn()]
    else:
        amount = [rich.MofNCompleteColumn(), rich.TextColumn(unit)]
    what = rich.TextColumn("{task.description:30.30}")
    return (
        what, rich.BarColumn(), rich.TaskProgressColumn(), *amount, rich.TimeRemainingColumn()
    )  # fmt: skip


@contextmanager
def bars() -> Iterator[tuple[Progress, BlockProgress]]:
    """The bars of a conversion on stderr, one row: of bytes, and of blocks. Silent when stderr is
    not a terminal."""
    if not sys.stderr.isatty():
        yield silent, silent_blocks
        return
    shown = Bars()
    shown.open(of_blocks=False)
    try:
        yield shown.amount, shown.blocks
    finally:
        shown.close()


@contextmanager
def bar(unit: str = "bytes") -> Iterator[Progress]:
    """A bar with rate and time left on stderr, one row; silent when stderr is not a terminal.

    `unit` is "bytes", or the plural of what `done` and `total` count.
    """
    if not sys.stderr.isatty():
        yield silent
        return
    shown = Bars(unit)
    shown.open(of_blocks=False)
    try:
        yield shown.amount
    finally:
        shown.close()
