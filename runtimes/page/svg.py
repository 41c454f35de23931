"""Drawing: elements with everything in them escaped, and axes.

A chart is as wide as its place and has its height in pixels: positions across are shares of the
width, so that text keeps its size on a phone. Colours are classes of the page's style.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

NOTHING = Markup("")


def element(name: str, *inside: object, **attributes: object) -> Markup:
    """`<name ...>inside</name>`; `class_` is class, `text_anchor` is text-anchor; None is left
    out. What is inside is escaped unless it is an element."""
    told = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_plain(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    body = "".join(str(escape(one)) for one in inside)
    return Markup(f"<{name}{told}>{body}</{name}>")


def join(parts: Iterable[Markup]) -> Markup:
    return NOTHING.join(parts)


def _plain(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def share(fraction: float) -> str:
    """A position across: "12.34%"."""
    return f"{_plain(round(100 * fraction, 2))}%"


def text(x: float, y: float, words: str, anchor: str = "start", **attributes: object) -> Markup:
    """At the share `x` of the width, on the base line `y`."""
    return element("text", words, x=share(x), y=y, text_anchor=anchor, **attributes)


def line(x1: float, y1: float, x2: float, y2: float, **attributes: object) -> Markup:
    return element("line", x1=share(x1), y1=y1, x2=share(x2), y2=y2, **attributes)


def bar(
    x1: float, x2: float, y: float, height: float, *inside: object, **attributes: object
) -> Markup:
    """A rectangle between two shares of the width."""
    left, right = min(x1, x2), max(x1, x2)
    return element(
        "rect", *inside, x=share(left), y=y, width=share(right - left), height=height, **attributes
    )


SHAPES = {
    "circle": "M-{r},0a{r},{r} 0 1,0 {d},0a{r},{r} 0 1,0 -{d},0z",
    "square": "M-{s},-{s}H{s}V{s}H-{s}z",
    "diamond": "M0,-{l}L{l},0L0,{l}L-{l},0z",
    "triangle": "M0,-{l}L{l},{s}H-{l}z",
    "cross": "M-{s},-{s}L{s},{s}M-{s},{s}L{s},-{s}",
}


def marker(x: float, y: float, shape: str, radius: float, *inside: object, class_: str) -> Markup:
    """A shape around a point; an inner drawing without a size of its own carries it there."""
    sizes = {"r": radius, "d": 2 * radius, "s": 0.88 * radius, "l": 1.25 * radius}
    drawn = SHAPES[shape].format(**{key: _plain(float(size)) for key, size in sizes.items()})
    path = element("path", *inside, d=drawn, class_=class_)
    return element("svg", path, x=share(x), y=y, width=1, height=1, overflow="visible")


def chart(
    ident: str, title: str, told: str, height: float, *inside: object, class_: str = ""
) -> Markup:
    """A picture with a name and a description for those who do not see it."""
    name, description = f"{ident}-title", f"{ident}-desc"
    drawing = element(
        "svg",
        element("title", title, id=name),
        element("desc", told, id=description),
        *inside,
        role="img",
        aria_labelledby=name,
        aria_describedby=description,
        height=height,
        width="100%",
    )
    return element("div", drawing, class_=f"plot {class_}".strip())


@dataclass(frozen=True, slots=True)
class Axis:
    """From values to shares of a length."""

    low: float
    high: float
    log: bool
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """0 at `low`, 1 at `high`; what lies outside is moved to the end."""
        if self.log:
            if value <= self.low:
                return 0.0
            found = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            found = (value - self.low) / (self.high - self.low)
        return min(max(found, 0.0), 1.0)


def known(values: Iterable[float | None]) -> list[float]:
    """Those that can be drawn."""
    return [value for value in values if value is not None and math.isfinite(value)]


def log_axis(values: Sequence[float], *, most: int = 7) -> Axis:
    """Around the positive `values`, ending on a 1, 2 or 5; at most some `most` marks."""
    positive = [value for value in values if value > 0 and math.isfinite(value)]
    low, high = min(positive, default=1e-3), max(positive, default=1.0)
    steps = _steps(low, high)
    low, high = steps[0], steps[-1]
    decades = [step for step in steps if _is_decade(step)]
    ticks = steps if len(steps) <= most else decades
    while len(ticks) > most:
        ticks = ticks[::2]
    return Axis(low, high, True, tuple(ticks))


def _steps(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, ...: from the last at or below `low` to the first at or above `high`."""
    first = math.floor(math.log10(low)) - 1
    last = math.ceil(math.log10(high)) + 1
    steps = [lead * 10.0**exponent for exponent in range(first, last + 1) for lead in (1, 2, 5)]
    start = max(at for at, step in enumerate(steps) if step <= low * (1 + 1e-9))
    stop = min(at for at, step in enumerate(steps) if step >= high * (1 - 1e-9))
    return steps[start : max(stop, start + 1) + 1]


def _is_decade(value: float) -> bool:
    exponent = math.log10(value)
    return abs(exponent - round(exponent)) < 1e-9


def linear_axis(low: float, high: float, *, most: int = 6) -> Axis:
    """From `low` to a little above `high`, with round marks."""
    length = high - low if high > low else abs(high) or 1.0
    rough = length / max(most - 1, 1)
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(lead * scale for lead in (1, 2, 5, 10) if lead * scale >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    end = low + length
    ticks = [n * step for n in range(first, first + most + 2) if n * step <= end * (1 + 1e-9)]
    return Axis(low, end, False, tuple(float(f"{one:.10g}") for one in ticks))
