"""Error by block: where it comes in, and what the runtime adds to it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence

from markupsafe import Markup

from qconvert.runtimes.findings import CheckReport, Finding, LayerError
from qconvert.runtimes.page.svg import (
    NOTHING,
    Axis,
    bar,
    chart,
    element,
    join,
    known,
    line,
    linear_axis,
    log_axis,
    marker,
    text,
)
from qconvert.runtimes.page.words import percent

DEEP = 230
TOP = 26  # pixels above the lines, for the name of the culprit
CROWD = 48  # blocks: the markers of more would cover the lines
DECADE = 12.0  # spread of the errors from which the axis is logarithmic

Series = tuple[str, str, str, Callable[[LayerError], float | None]]
SERIES: tuple[Series, ...] = (
    ("source → file as decoded", "blue", "circle", lambda one: one.quantization),
    ("file as decoded → runtime", "orange", "square", lambda one: one.runtime),
    ("expected noise of the runtime", "grey", "triangle", lambda one: one.expected),
)


def series(layers: Sequence[LayerError]) -> list[Series]:
    """Those that there is something of: what was not measured is None, or 0 in every block."""
    return [one for one in SERIES if any(known(one[3](layer) for layer in layers))]


def culprits(report: CheckReport) -> list[int]:
    """Blocks that a finding names, itself or by a tensor of theirs."""
    found = (_block(one) for one in report.findings)
    return sorted({block for block in found if block is not None})


def _block(finding: Finding) -> int | None:
    """Of "block 7", "model.layers.7.mlp.up_proj.weight", "transformer.h.7.attn.c_attn.weight"."""
    match = re.search(r"(?:^block |\.)(\d{1,6})(?:\.|$)", finding.culprit)
    return int(match[1]) if match else None


def layer_chart(ident: str, layers: Sequence[LayerError], marked: Iterable[int]) -> Markup:
    """One line each; the blocks that are `marked` stand out."""
    drawn = series(layers)
    values = known(read(layer) for _, _, _, read in drawn for layer in layers)
    axis = _axis(values)
    first, last = layers[0].block, layers[-1].block
    across = Axis(first - 0.5, last + 0.5, False, ())
    held = {layer.block for layer in layers}
    parts = [*_grid(axis, across, first, last)]
    parts += [_culprit(across, block) for block in marked if block in held]
    for label, colour, shape, read in reversed(drawn):
        points = [(across.at(one.block), read(one)) for one in layers]
        parts += _line(points, axis, colour, shape if len(layers) <= CROWD else "")
        del label
    parts += [_hover(across, layer, drawn) for layer in layers]
    told = "; ".join(_told(layer, drawn) for layer in layers)
    return chart(ident, "Relative error by block", told, TOP + DEEP + 40, *parts, class_="left")


def legend(layers: Sequence[LayerError]) -> Markup:
    """The lines and their names."""
    items = []
    for label, colour, shape, _ in series(layers):
        sample = element(
            "svg",
            element("line", x1=0, y1=7, x2=26, y2=7, class_=f"line {colour}"),
            element("svg", marker(0, 0, shape, 4.5, class_=f"mark {colour}"), x=13, y=7,
                    overflow="visible"),
            width=26, height=14, aria_hidden="true",
        )  # fmt: skip
        items.append(element("li", sample, " ", label))
    return element("ul", *items, class_="legend") if items else NOTHING


def _axis(values: Sequence[float]) -> Axis:
    positive = [value for value in values if value > 0]
    if positive and max(positive) / min(positive) > DECADE:
        return log_axis(positive, most=6)
    return linear_axis(0.0, 1.08 * max(values, default=1.0) or 1.0, most=5)


def _y(axis: Axis, value: float) -> float:
    return TOP + DEEP * (1 - axis.at(value))


def _grid(axis: Axis, across: Axis, first: int, last: int) -> list[Markup]:
    parts = []
    for value in axis.ticks:
        y = _y(axis, value)
        parts.append(line(0, y, 1, y, class_="grid"))
        shown = f"{100 * value:g} %" if value == 0 or value >= 1e-5 else percent(value)
        parts.append(element("text", shown, x=-6, y=y + 4, text_anchor="end", class_="tick"))
    bottom = TOP + DEEP
    parts.append(line(0, bottom, 1, bottom, class_="axis"))
    count = last - first + 1
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000, 10**6) if count / step <= 8)
    for block in range(-(-first // step) * step, last + 1, step):
        at = across.at(block)
        parts.append(line(at, bottom, at, bottom + 5, class_="axis"))
        parts.append(text(at, bottom + 19, str(block), "middle", class_="tick"))
    return [*parts, text(1, bottom + 36, "block", "end", class_="tick")]


def _culprit(across: Axis, block: int) -> Markup:
    low, high = across.at(block - 0.5), across.at(block + 0.5)
    middle = (low + high) / 2
    anchor = "start" if middle < 0.15 else "end" if middle > 0.85 else "middle"
    return join(
        [
            bar(low, high, TOP - 6, DEEP + 6, class_="culprit"),
            text(middle, TOP - 11, f"block {block}", anchor, class_="strong fail-text"),
        ]
    )


def _line(
    points: Sequence[tuple[float, float | None]], axis: Axis, colour: str, shape: str
) -> list[Markup]:
    placed = [(x, _y(axis, y)) for x, y in points if y is not None and known([y])]
    lines = [
        line(*start, *end, class_=f"line {colour}") for start, end in itertools.pairwise(placed)
    ]
    if shape or len(placed) == 1:
        lines += [marker(x, y, shape or "circle", 3.6, class_=f"mark {colour}") for x, y in placed]
    return lines


def _hover(across: Axis, layer: LayerError, drawn: Sequence[Series]) -> Markup:
    low, high = across.at(layer.block - 0.5), across.at(layer.block + 0.5)
    return bar(low, high, TOP, DEEP, element("title", _told(layer, drawn)), class_="hover")


def _told(layer: LayerError, drawn: Sequence[Series]) -> str:
    parts = [
        f"{label} {percent(value)}"
        for label, _, _, read in drawn
        if (value := read(layer)) is not None
    ]
    return f"block {layer.block}: {', '.join(parts)}"
