"""Tables of the console, and how they write figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from qconvert.runtimes.findings import BenchReport, Interval, Judgement, Verdict
from qconvert.runtimes.gate.gates import BY_KEY, Unit
from qconvert.runtimes.page.speed import timed
from qconvert.runtimes.page.words import wide

STYLES: dict[Verdict, str] = {
    "PASS": "bold green", "FAIL": "bold red", "INCONCLUSIVE": "bold yellow",
}  # fmt: skip


def rates_table(report: BenchReport) -> Table:
    table = new_table("", "median", "95 %", *(("unquantized", "gain") if report.beside else ()))
    for row in timed(report):
        which = f", {row.which}" if row.which else ""
        cells = [f"{row.label.lower()}{which}, {row.unit or 's'}", rate(row.found.value),
                 between(row.found, rate)]  # fmt: skip
        if report.beside:
            cells.append("" if row.plain is None else rate(row.plain.value))
            gain = "" if row.gain is None else f"{row.gain.value:.2f} times"
            ends = "" if row.gain is None else between(row.gain, rate)
            cells.append(f"{gain} ({ends})" if ends else gain)
        add(table, *cells)
    return table


def rate(value: float) -> str:
    return f"{value:,.1f}" if value >= 10 else f"{value:.2f}"


def gates_table(judgements: Sequence[Judgement]) -> Table:
    table = new_table("gate", "limit", "found", "95 %", "verdict")
    for one in judgements:
        gate = BY_KEY.get(one.gate.replace("-", "_"))
        show = small if gate is None else gate.unit.shown
        bound = "" if gate is None else "at most " if gate.most else "at least "
        verdict = Text(one.verdict, style=STYLES[one.verdict])
        value = "-" if one.found.value != one.found.value else show(one.found.value)
        ends = between(one.found) if gate is None else inside(one.found, gate.unit)
        add(table, one.gate, f"{bound}{show(one.limit)}", value, ends, verdict)
    return table


def inside(found: Interval, unit: Unit) -> str:
    return unit.between(found.low, found.high) if wide(found) else ""


def between(found: Interval, shown: Callable[[float], str] | None = None) -> str:
    """ "0.0408 to 0.0486", empty where the figure is exact."""
    show = shown or small
    if not wide(found):
        return ""
    if math.isinf(found.high):
        return f"{show(found.low)} or more"
    return f"{show(found.low)} to {show(found.high)}"


def small(value: float) -> str:
    return f"{value:.4f}" if value >= 1e-3 else f"{value:.1e}"


def size(nbytes: float) -> str:
    return f"{nbytes / 1e6:,.1f} MB" if nbytes < 1e9 else f"{nbytes / 1e9:,.2f} GB"


def threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def new_table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for number, column in enumerate(columns):
        left = number == 0 or column in ("output", "verdict")
        table.add_column(column, justify="left" if left else "right", overflow="fold")
    return table


def add(table: Table, *cells: object) -> None:
    """A row of plain text: file names may hold the marks that rich would interpret."""
    table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in cells))
