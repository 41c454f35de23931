"""Positions by KL: a histogram on a logarithmic axis, with what the percentiles are."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from qconvert.runtimes.findings import Histogram
from qconvert.runtimes.measure import Distance
from qconvert.runtimes.page import figures
from qconvert.runtimes.page.svg import Axis, bar, chart, element, line, text
from qconvert.runtimes.page.words import number, percent, tick

LABELS, DEEP = 84, 230  # pixels of the labels above, and of the bars
ROOM = 0.42  # share of the width that a label takes on a phone


def histogram(ident: str, found: Histogram, distance: Distance) -> Markup:
    """Bars from the 99th percentile on stand out. The outermost take what lies outside."""
    axis = _axis(found)
    total, most = max(sum(found.counts), 1), max(found.counts, default=0) or 1
    marks = _marks(distance)
    tail = next((value for name, value in marks if name == "p99"), float("inf"))
    bottom = LABELS + DEEP
    parts = [*_grid(axis, most / total, bottom)]
    for low, high, count in zip(found.edges, found.edges[1:], found.counts, strict=False):
        height = DEEP * count / most
        told = element(
            "title", f"{number(low)} to {number(high)} nats: {count:,} ({percent(count / total)})"
        )
        colour = "orange" if low >= tail else "blue"
        parts.append(
            bar(axis.at(low), axis.at(high), bottom - height, height, told, class_=f"bin {colour}")
        )
    parts += _lines(axis, marks, bottom)
    described = f"{total:,} positions. " + ", ".join(f"{name} {number(v)}" for name, v in marks)
    height = bottom + 24
    return chart(ident, "Positions by KL, nats", described, height, *parts, class_="left")


def _axis(found: Histogram) -> Axis:
    edges = [edge for edge in found.edges if edge > 0]
    low, high = (edges[0], edges[-1]) if len(edges) > 1 else (1e-6, 1.0)
    if low >= high:
        low, high = low / 10, low
    ticks = [10.0**n for n in range(-12, 5) if low * 0.999 <= 10.0**n <= high * 1.001]
    while len(ticks) > 7:
        ticks = ticks[::-2][::-1]
    return Axis(low, high, True, tuple(ticks))


def _marks(distance: Distance) -> list[tuple[str, float]]:
    pairs = [("mean", figures.kl_mean(distance)), *figures.kl_tail(distance)]
    return sorted(
        ((name, one.value) for name, one in pairs if one.value > 0), key=lambda pair: pair[1]
    )


def _grid(axis: Axis, most: float, bottom: float) -> list[Markup]:
    parts = [line(0, bottom, 1, bottom, class_="axis")]
    for part in (0.5, 1.0):
        y = bottom - part * DEEP
        parts.append(line(0, y, 1, y, class_="grid"))
        parts.append(element("text", percent(part * most), x=-6, y=y + 4, text_anchor="end",
                             class_="tick"))  # fmt: skip
    for value in axis.ticks:
        at = axis.at(value)
        parts.append(line(at, bottom, at, bottom + 5, class_="axis"))
        parts.append(text(at, bottom + 19, tick(value), "middle", class_="tick"))
    return parts


def _lines(axis: Axis, marks: Sequence[tuple[str, float]], bottom: float) -> list[Markup]:
    """Each label on a line of its own, so that no two can meet. To the left of their marks, the
    furthest right on top, no label lies on the line of another; nor the other way round."""
    places = [axis.at(value) for _, value in marks]
    left = not places or places[0] > ROOM
    right = not left and places[-1] < 1 - ROOM
    rows = range(len(marks)) if right else reversed(range(len(marks)))
    parts = []
    for row, at, (name, value) in zip(rows, places, marks, strict=True):
        y = 14 + 19 * row
        anchor, away = ("end", -6) if left or (not right and at > 0.5) else ("start", 6)
        parts.append(line(at, y - 10, at, bottom, class_=f"level {name.replace('.', '')}"))
        parts.append(text(at, y, f"{name} {number(value)}", anchor, dx=away, class_="strong halo"))
    return parts
