"""Progress of long work, for a person at a terminal. Nobody else sees it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, int, int], None]
"""`progress(what, done, total)`: how much of `what` is done, in bytes of the source."""


def silent(what: str, done: int, total: int) -> None:
    """A `Progress` that shows nothing."""


@contextmanager
def bar(unit: str = "bytes") -> Iterator[Progress]:
    """A bar with rate and time left on stderr, one row; silent when stderr is not a terminal.

    `unit` is "bytes", or the plural of what `done` and `total` count.
    """
    if not sys.stderr.isatty():
        yield silent
        return
    from rich import progress as rich_progress
    from rich.console import Console

    amount: list[rich_progress.ProgressColumn]
    if unit == "bytes":
        amount = [rich_progress.DownloadColumn(), rich_progress.TransferSpeedColumn()]
    else:
        amount = [rich_progress.MofNCompleteColumn(), rich_progress.TextColumn(unit)]
    columns = (
        rich_progress.TextColumn("{task.description:30.30}"),
        rich_progress.BarColumn(),
        rich_progress.TaskProgressColumn(),
        *amount,
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("reading headers", total=None)

        def update(what: str, done: int, total: int) -> None:
            shown.update(task, description=what, completed=done, total=total)

        yield update
