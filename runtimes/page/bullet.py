"""A gate as a bullet chart: the figure with its interval beside the limit."""

from __future__ import annotations

import math
from dataclasses import dataclass

from markupsafe import Markup

from qconvert.runtimes.findings import Judgement
from qconvert.runtimes.gate.gates import BY_KEY
from qconvert.runtimes.page.svg import Axis, bar, chart, known, line, marker, text
from qconvert.runtimes.page.words import (
    TIMES,
    Format,
    megabytes,
    number,
    percent,
    rate,
    ratio,
    seconds,
    span,
    tick,
    times,
    wide,
)

HEIGHT = 64
TOP, DEEP = 22, 18  # of the track, pixels


UNITS: dict[str, tuple[Format, str]] = {
    "nats": (number, "nats"), "share": (percent, ""), "ratio": (ratio, ""), "times": (times, ""),
    "tokens/s": (rate, "tokens/s"), "s": (seconds, ""), "bytes": (megabytes, ""),
}  # fmt: skip
"""Name of a gate's unit -> how a figure is written, and what is said behind it."""


@dataclass(frozen=True, slots=True)
class Shown:
    """How a gate and its figure are called and written."""

    label: str
    shown: Format
    unit: str
    most: bool


def shown_of(judgement: Judgement) -> Shown:
    """Of a gate that is not known here, its own name."""
    gate = BY_KEY.get(judgement.gate.replace("-", "_"))
    if gate is None:
        return Shown(judgement.gate, number, "", not judgement.gate.startswith("min"))
    figure = gate.figure.removeprefix("the ")
    shown, unit = UNITS.get(gate.unit.name, (number, gate.unit.suffix.strip()))
    return Shown(figure[0].upper() + figure[1:], shown, unit, gate.most)


def limit_told(judgement: Judgement) -> str:
    """ "at most 0.05 nats" """
    gate = shown_of(judgement)
    bound = "at most" if gate.most else "at least"
    return f"{bound} {short(gate, judgement.limit)} {gate.unit}".rstrip()


def short(gate: Shown, value: float) -> str:
    """A limit as it was asked for: 0.05, not 0.0500."""
    if gate.shown in (number, ratio, rate):
        return tick(value)
    if gate.shown is percent:
        return f"{100 * value:g} %"
    return f"{value:g}{TIMES}" if gate.shown is times else gate.shown(value)


def bullet(ident: str, judgement: Judgement) -> Markup:
    """The allowed side is shaded; the axis begins at 0 unless the interval would vanish there."""
    gate, found, limit = shown_of(judgement), judgement.found, judgement.limit
    axis = _axis(judgement)
    at = axis.at(limit)
    low, high = (0.0, at) if gate.most else (at, 1.0)
    parts = [
        bar(0, 1, TOP, DEEP, rx=4, class_="track"),
        bar(low, high, TOP, DEEP, rx=4, class_="allowed"),
        *_figure(judgement, axis),
        line(at, TOP - 6, at, TOP + DEEP + 6, class_="limit"),
        text(at, 12, f"limit {short(gate, limit)}", _anchor(at), class_="strong"),
        text(0, HEIGHT - 3, short_end(gate, axis.low), class_="faint"),
        text(1, HEIGHT - 3, short_end(gate, axis.high), "end", class_="faint"),
    ]
    ends = span(found, gate.shown)
    told = (
        f"{gate.shown(found.value)} {gate.unit}, {limit_told(judgement)}: {judgement.verdict}."
        + (f" 95 % interval {ends}." if ends else "")
    )
    return chart(ident, gate.label, told, HEIGHT, *parts, class_="bullet")


def short_end(gate: Shown, value: float) -> str:
    """An end of the axis, without digits that nobody reads."""
    return gate.shown(float(f"{value:.3g}")) if value else "0"


def _figure(judgement: Judgement, axis: Axis) -> list[Markup]:
    found, colour = judgement.found, judgement.verdict.lower()
    if not math.isfinite(found.value):
        return [text(0.5, TOP + 13, "not measured", "middle", class_="strong")]
    middle = TOP + DEEP / 2
    parts = []
    if wide(found):
        low, high = axis.at(found.low), axis.at(found.high)
        parts.append(bar(low, high, middle - 4, 8, rx=3, class_=f"interval {colour}"))
    return [*parts, marker(axis.at(found.value), middle, "circle", 6, class_=f"mark {colour}")]


def _axis(judgement: Judgement) -> Axis:
    """All of limit, figure and interval, with some air."""
    found = judgement.found
    points = known([judgement.limit, found.value, found.low, found.high])
    low, high = min(points), max(points)
    length = high - low or abs(high) or 1.0
    if length > 0.3 * high:
        return Axis(min(0.0, low), high + 0.12 * length, False, ())
    return Axis(max(low - 0.6 * length, 0.0), high + 0.6 * length, False, ())


def _anchor(at: float) -> str:
    return "start" if at < 0.2 else "end" if at > 0.8 else "middle"
