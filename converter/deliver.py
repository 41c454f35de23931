"""Where results go: the terminal, a file of JSON, a report folder. Light until it is used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qconvert.formats.refusal import raise_if_any

if TYPE_CHECKING:
    from qconvert.pipeline import Conversion


def deliver(result: Any, report: str | None, *tables: Any) -> None:
    """Show `tables`, or `result` as JSON alone when `report` is "-"; also write it to a file."""
    from qconvert import facts, render

    if report is not None:
        facts.write_report(result, report)
    if report != "-":
        render.show(*tables)


def write_text(text: str, where: str) -> None:
    """Write `text` to the file `where`, whole or not at all, or to standard output when it is
    "-"."""
    import sys

    from qconvert.facts import write_whole

    if where == "-":
        sys.stdout.write(text)
    else:
        write_whole(text, Path(where))


def can_report(folder: Path | None, *, force: bool) -> None:
    """`Refused` when no report can be written to `folder`: before the work is done, not after."""
    if folder is not None:
        from qconvert.report_folder import problems

        raise_if_any(problems(folder, force=force))


def write_report_folder(folder: Path | None, result: Any, done: Conversion) -> None:
    """Write the report that --report asks for."""
    if folder is not None:
        from qconvert.report_folder import write

        write(folder, result, () if done.calibrated is None else done.calibrated.blocks)
