"""Tensors that are furthest from the source, beside what their bits explain."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from qconvert.runtimes.page.svg import bar, element, line
from qconvert.runtimes.weights import TensorError

MOST = 8
FULL = 1.25  # times the limit, at the end of the bar


def furthest(errors: Sequence[TensorError], most: int = MOST) -> list[TensorError]:
    """By the worst row over what it may be; what is not finite comes first."""
    return sorted(errors, key=lambda one: (-_reach(one), one.name))[:most]


def _reach(one: TensorError) -> float:
    reach = one.worst_row / one.limit if one.limit else math.inf
    return reach if math.isfinite(reach) else math.inf


def gauge(one: TensorError) -> Markup:
    """The worst row, beside the limit."""
    limit = 1 / FULL
    reach = min(_reach(one) / FULL, 1.0)
    colour = "blue" if one.ok else "fail"
    return element(
        "svg",
        bar(0, 1, 2, 12, rx=3, class_="track"),
        bar(0, reach, 2, 12, rx=3, class_=f"rate {colour}"),
        line(limit, 0, limit, 16, class_="limit"),
        class_="gauge", width="100%", height=16, aria_hidden="true",
    )  # fmt: skip
