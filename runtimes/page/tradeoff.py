"""Size against accuracy of several outputs: what each buys, and which are worth their size."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from qconvert.runtimes.findings import CheckReport, Interval
from qconvert.runtimes.page import figures
from qconvert.runtimes.page.svg import (
    Axis,
    chart,
    element,
    known,
    line,
    linear_axis,
    log_axis,
    marker,
    share,
    text,
)
from qconvert.runtimes.page.words import base, number, span, tick, wide

DEEP = 340  # pixels
TOP = 18
SHAPES = {"PASS": "circle", "INCONCLUSIVE": "diamond", "FAIL": "square"}
WIDE, NARROW = 680, 280  # pixels that labels are placed for
LETTER = 6.9  # pixels, of a label's text
SPREAD = 8.0  # largest size over smallest from which sizes are on a logarithmic axis
LONGEST = 34  # letters of a label


@dataclass(frozen=True, slots=True)
class Point:
    """One output in the picture."""

    number: int  # from 1
    name: str
    nbytes: int
    kl: Interval
    verdict: str


def points(reports: Sequence[CheckReport]) -> list[Point]:
    """All that have a figure."""
    found = [
        Point(at, base(one.file.path), one.file.nbytes, figures.kl_mean(figures.gated(one)),
              one.verdict)
        for at, one in enumerate(reports, 1)
    ]  # fmt: skip
    return [point for point in found if known([point.kl.value])]


def front(found: Sequence[Point]) -> list[Point]:
    """Those that no other beats in both: by size, each nearer to the source than all before."""
    best: list[Point] = []
    for point in sorted(found, key=lambda one: (one.nbytes, one.kl.value)):
        if not best or point.kl.value < best[-1].kl.value:
            best.append(point)
    return best


def tradeoff(ident: str, found: Sequence[Point]) -> Markup:
    """Points with their intervals, the front as steps."""
    across, up = _axes(found)
    best = front(found)
    placed = [(across.at(one.nbytes / 1e6), _y(up, one.kl.value)) for one in found]
    parts = [*_grid(across, up), *_steps([placed[found.index(one)] for one in best])]
    for point, (x, y) in zip(found, placed, strict=True):
        parts += _point(point, x, y, up)
    full = [f"{point.number} {_cut(point.name)}" for point in found]
    drawn = _strokes(found, placed, up) + _corners([placed[found.index(one)] for one in best])
    numbers = [str(point.number) for point in found]
    parts += _labels(placed, full, drawn, WIDE, "wide")
    parts += _labels(placed, numbers, drawn, NARROW, "narrow")
    told = "; ".join(
        f"{_told(point)}{', on the front' if point in best else ''}" for point in found
    )
    height = TOP + DEEP + 42
    return chart(ident, "Size against mean KL from the source", told, height, *parts, class_="left")


def sample(verdict: str) -> Markup:
    """The shape of a verdict, for the legend."""
    return element(
        "svg",
        element("svg", marker(0, 0, SHAPES[verdict], 7, class_=f"mark {verdict.lower()}"), x=9, y=9,
                overflow="visible"),
        width=18, height=18, aria_hidden="true",
    )  # fmt: skip


def _told(point: Point) -> str:
    ends = span(point.kl)
    interval = f" (95 %: {ends})" if ends else ""
    size = f"{point.nbytes / 1e6:,.1f} MB"
    return f"{point.name}: {size}, KL {number(point.kl.value)} nats{interval}, {point.verdict}"


def _axes(found: Sequence[Point]) -> tuple[Axis, Axis]:
    sizes = [max(point.nbytes, 1) / 1e6 for point in found]
    least, most = min(sizes), max(sizes)
    if most / least > SPREAD:
        across = log_axis([least / 1.1, most * 1.1], most=6)
    else:
        air = 0.12 * (most - least or most)
        across = linear_axis(max(least - air, 0.0), most + air, most=6)
    values = [value for p in found for value in (p.kl.value, p.kl.low, p.kl.high)]
    return across, log_axis(known(values), most=7)


def _y(axis: Axis, value: float) -> float:
    return round(TOP + DEEP * (1 - axis.at(value)), 1)


def _grid(across: Axis, up: Axis) -> list[Markup]:
    bottom = TOP + DEEP
    parts = []
    for value in up.ticks:
        y = _y(up, value)
        parts.append(line(0, y, 1, y, class_="grid"))
        parts.append(element("text", tick(value), x=-6, y=y + 4, text_anchor="end", class_="tick"))
    for value in across.ticks:
        at = across.at(value)
        parts.append(line(at, bottom, at, bottom + 5, class_="axis"))
        parts.append(text(at, bottom + 19, f"{value:,g}", "middle", class_="tick"))
    parts.append(line(0, bottom, 1, bottom, class_="axis"))
    parts.append(element("text", "mean KL, nats", x=-6, y=8, class_="tick"))
    return [*parts, text(1, bottom + 38, "size, MB", "end", class_="tick")]


def _steps(best: Sequence[tuple[float, float]]) -> list[Markup]:
    """What is above and right of the line is beaten by a point on it."""
    return [line(*ends, class_="front") for ends in _corners(best)]


Stroke = tuple[float, float, float, float]  # x1, y1, x2, y2: shares across, pixels down


def _corners(best: Sequence[tuple[float, float]]) -> list[Stroke]:
    """From point to point of the front, across and then down."""
    return [
        stroke
        for (x1, y1), (x2, y2) in itertools.pairwise(best)
        for stroke in ((x1, y1, x2, y1), (x2, y1, x2, y2))
    ]


def _strokes(
    found: Sequence[Point], placed: Sequence[tuple[float, float]], up: Axis
) -> list[Stroke]:
    """The whiskers."""
    return [
        (x, _y(up, point.kl.high), x, _y(up, point.kl.low))
        for point, (x, _) in zip(found, placed, strict=True)
        if wide(point.kl)
    ]


def _point(point: Point, x: float, y: float, up: Axis) -> list[Markup]:
    colour = point.verdict.lower()
    parts = []
    if wide(point.kl):
        ends = (_y(up, point.kl.low), _y(up, point.kl.high))
        parts.append(line(x, ends[0], x, ends[1], class_=f"whisker {colour}"))
    title = element("title", _told(point))
    shape = SHAPES.get(point.verdict, "triangle")
    return [*parts, marker(x, y, shape, 8, title, class_=f"mark {colour}")]


Box = tuple[float, float, float, float]


def _labels(
    placed: Sequence[tuple[float, float]],
    labels: Sequence[str],
    drawn: Sequence[Stroke],
    width: float,
    kind: str,
) -> list[Markup]:
    """Each on the side of its point where it hides least, in a picture of `width` pixels."""
    taken: list[Box] = [(width * x - 9, y - 9, width * x + 9, y + 9) for x, y in placed]
    taken += [
        (width * x1 - 2, min(y1, y2) - 2, width * x2 + 2, max(y1, y2) + 2)
        for x1, y1, x2, y2 in drawn
    ]
    parts = []
    for (x, y), label in zip(placed, labels, strict=True):
        sides = _sides(width * x, y, LETTER * len(label) + 4)
        (dx, dy, anchor), box = min(sides, key=lambda side: _hidden(side[1], taken, width))
        taken.append(box)
        parts.append(element("text", label, x=share(x), y=y, dx=dx, dy=dy, text_anchor=anchor,
                             class_=f"strong halo {kind}"))  # fmt: skip
    return parts


def _sides(x: float, y: float, long: float) -> list[tuple[tuple[float, float, str], Box]]:
    """(offsets and anchor, box), best first."""
    return [
        ((13, 4.5, "start"), (x + 12, y - 8, x + 12 + long, y + 8)),
        ((-13, 4.5, "end"), (x - 12 - long, y - 8, x - 12, y + 8)),
        ((0, -15, "middle"), (x - long / 2, y - 28, x + long / 2, y - 12)),
        ((0, 25, "middle"), (x - long / 2, y + 12, x + long / 2, y + 28)),
        ((11, -11, "start"), (x + 10, y - 24, x + 10 + long, y - 8)),
        ((-11, -11, "end"), (x - 10 - long, y - 24, x - 10, y - 8)),
        ((11, 19, "start"), (x + 10, y + 8, x + 10 + long, y + 24)),
        ((-11, 19, "end"), (x - 10 - long, y + 8, x - 10, y + 24)),
    ]


def _hidden(box: Box, taken: Sequence[Box], width: float) -> float:
    """Square pixels that the box shares with others or has outside."""
    left, top, right, bottom = box
    outside = max(0.0, -left) + max(0.0, right - width)
    below = max(0.0, bottom - TOP - DEEP)
    hidden = sum(
        max(0.0, min(right, one[2]) - max(left, one[0]))
        * max(0.0, min(bottom, one[3]) - max(top, one[1]))
        for one in taken
    )
    return hidden + 100 * outside + 100 * below


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
