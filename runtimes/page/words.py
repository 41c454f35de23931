"""Figures as people read them: three digits, a dash for what is not known."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import PurePath

from qconvert.runtimes.findings import Interval

UNKNOWN = DASH = "\N{EN DASH}"
TIMES, MINUS = "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}"
UNITS = (" %", TIMES, " kB", " MB", " GB", " ms", " s")  # said once of an interval
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

Format = Callable[[float], str]


def power(value: float) -> str:
    """10⁻⁵ or three times that, of a positive value."""
    exponent = math.floor(math.log10(value) + 1e-9)
    lead = f"{value / 10**exponent:.2g}"
    raised = f"10{str(exponent).translate(RAISED)}"
    return raised if lead == "1" else f"{lead}{TIMES}{raised}"


def number(value: float) -> str:
    """0.0123, 1.23, 12,300, or with a power of ten."""
    if not math.isfinite(value):
        return "∞" if math.isinf(value) else UNKNOWN
    size = abs(value)
    if size == 0:
        return "0"
    if size < 5e-4:
        return (MINUS if value < 0 else "") + power(size)
    if size >= 1000:
        return f"{value:,.0f}"
    digits = max(0, 2 - math.floor(math.log10(size)))
    return f"{value:.{digits}f}"


def tick(value: float) -> str:
    """A mark of an axis: as short as it can be."""
    if value == 0:
        return "0"
    return f"{value:g}" if 1e-3 <= abs(value) < 1e5 else power(value)


def percent(value: float) -> str:
    """A share: 98.4 %, 0.012 %."""
    if not math.isfinite(value):
        return UNKNOWN
    shown = 100 * value
    size = abs(shown)
    if size == 0:
        return "0 %"
    if size >= 10:
        return f"{shown:.1f} %"
    return f"{shown:.2f} %" if size >= 0.1 else f"{number(shown)} %"


def times(value: float) -> str:
    return f"{number(value)}{TIMES}"


def ratio(value: float) -> str:
    """Four decimals: what is told apart lies near 1."""
    return f"{value:.4f}" if math.isfinite(value) and value < 100 else number(value)


def megabytes(nbytes: float) -> str:
    if not math.isfinite(nbytes):
        return UNKNOWN
    if nbytes < 1e6:
        return f"{nbytes / 1e3:,.1f} kB"
    return f"{nbytes / 1e6:,.1f} MB" if nbytes < 1e9 else f"{nbytes / 1e9:,.2f} GB"


def rate(value: float) -> str:
    """Tokens per second."""
    return f"{value:,.0f}" if value >= 100 else number(value)


def seconds(value: float) -> str:
    if not math.isfinite(value):
        return UNKNOWN
    if value < 1:
        return f"{1000 * value:.{0 if value >= 0.1 else 1}f} ms"
    return f"{value:.1f} s" if value < 100 else f"{value:,.0f} s"


def wide(interval: Interval) -> bool:
    """Whether it is more than its value; an end may be infinite."""
    return interval.low < interval.high and math.isfinite(interval.low)


def span(interval: Interval, shown: Format = number) -> str:
    """The ends, 0.0491 to 0.0532; empty where the figure is exact or its interval not known."""
    if not wide(interval):
        return ""
    if math.isinf(interval.high):
        return f"{shown(interval.low)} or more"
    low, high = shown(interval.low), shown(interval.high)
    for unit in UNITS:
        if low.endswith(unit) and high.endswith(unit):
            low = low.removesuffix(unit)
    between = f" {DASH} " if TIMES in low else DASH
    return f"{low}{between}{high}"


def count(n: int, one: str, many: str | None = None) -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def base(path: str) -> str:
    """The last part of a path, whatever system it is of."""
    return PurePath(path.replace("\\", "/")).name or path
