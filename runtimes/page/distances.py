"""The distances of a check: what quantization costs, what the runtime adds, what is expected."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from qconvert.runtimes.findings import CheckReport, OtherWay
from qconvert.runtimes.measure import Distance
from qconvert.runtimes.page import figures
from qconvert.runtimes.page.svg import bar, chart, known, line, log_axis, marker, text
from qconvert.runtimes.page.words import number, span, tick, wide

ROW = 50  # pixels


@dataclass(frozen=True, slots=True)
class Row:
    """A distance, and what is said of it."""

    label: str
    path: str  # from what to what
    distance: Distance
    colour: str  # class of the style
    shape: str
    limit: float | None = None  # what it may be, nats


def rows(report: CheckReport) -> list[Row]:
    """From causes to what a user gets."""
    return list(_rows(report))


def _rows(report: CheckReport) -> Iterator[Row]:
    name = "" if report.runtime is None else report.runtime.name
    yield Row("Quantization costs", "source → file as decoded", report.quantization, "blue",
              "circle")  # fmt: skip
    if report.as_told is not None:
        yield Row("With activations rounded", "source → file as decoded, rounded as it says",
                  report.as_told, "purple", "diamond")  # fmt: skip
    if report.runtime_adds is not None:
        limit = None if report.noise is None else report.noise.limit
        yield Row("The runtime adds", f"file as decoded → {name}", report.runtime_adds, "orange",
                  "square", limit)  # fmt: skip
    if report.noise is not None:
        yield Row("Expected noise", "of it: rounding of activations", report.noise.expected, "grey",
                  "triangle")  # fmt: skip
        yield Row("Unexplained", f"rounded reference → {name}", report.noise.beyond, "grey",
                  "diamond")  # fmt: skip
    if report.floor is not None:
        yield Row("Noise floor", f"source → {name}, unquantized file", report.floor, "grey",
                  "circle")  # fmt: skip
    if report.total is not None:
        label = "Total" if report.also is not None else "What a user gets"
        yield Row(label, f"source → {name}", report.total, "ink", "circle")
    if report.also is not None:
        yield from _other(report.also, name)


def _other(also: OtherWay, name: str) -> Iterator[Row]:
    where = f"{name}, {also.label}"
    if also.adds is not None:
        limit = None if also.noise is None else also.noise.limit
        yield Row("The runtime adds", f"file as decoded → {where}", also.adds, "orange", "square",
                  limit)  # fmt: skip
    if also.noise is not None:
        yield Row("Expected noise", f"of it: rounding of activations, {also.label}",
                  also.noise.expected, "grey", "triangle")  # fmt: skip
    if also.total is not None:
        yield Row("What a user gets", f"source → {where}", also.total, "ink", "circle")


def ladder(ident: str, shown: Sequence[Row]) -> Markup:
    """Mean KL of each, one below the other, on a common logarithmic axis."""
    found = [figures.kl_mean(row.distance) for row in shown]
    ends = known([value for one in found for value in (one.value, one.low, one.high)])
    axis = log_axis([*ends, *known(row.limit for row in shown)])
    bottom = ROW * len(shown) + 8
    parts = [line(axis.at(value), 4, axis.at(value), bottom, class_="grid") for value in axis.ticks]
    parts += [
        text(axis.at(value), bottom + 16, tick(value), "middle", class_="tick")
        for value in axis.ticks
    ]
    told = []
    for at, (row, one) in enumerate(zip(shown, found, strict=True)):
        top = ROW * at
        ends_told = span(one)
        value = f"{number(one.value)}" + (f"  [{ends_told}]" if ends_told else "")
        parts.append(text(0, top + 17, row.label, class_="strong halo"))
        parts.append(text(1, top + 17, value, "end", class_="halo"))
        y = top + 32
        parts.append(line(0, y, 1, y, class_="rail"))
        if row.limit is not None:
            limit = axis.at(row.limit)
            parts.append(bar(0, limit, y - 4, 8, class_="allowed"))
            parts.append(line(limit, y - 8, limit, y + 8, class_="limit"))
        if known([one.value]):
            if wide(one):
                low, high = axis.at(one.low), axis.at(one.high)
                parts.append(line(low, y, high, y, class_=f"whisker {row.colour}"))
            parts.append(marker(axis.at(one.value), y, row.shape, 5.5, class_=f"mark {row.colour}"))
        told.append(f"{row.label}, {row.path}: {value}")
    height = bottom + 22
    return chart(ident, "Mean KL of each distance, nats", "; ".join(told), height, *parts)
