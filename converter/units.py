"""Amounts as people read them."""

from __future__ import annotations

from qconvert.formats.amounts import in_units


def size(nbytes: float) -> str:
    """Decimal units, three digits or so: 143.6 MB."""
    value, unit = in_units(nbytes)
    return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.1f} {unit}"


def duration(seconds: float) -> str:
    """4 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 1:
        return "under a second"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def share(value: float | None) -> str:
    """A relative error in percent, three digits: 12.3 %, 0.0412 %; a dash for what is not known."""
    if value is None:
        return "-"
    percent = 100 * value
    digits = 0 if percent >= 100 else 1 if percent >= 10 else 2 if percent >= 1 else 3
    return f"{percent:.{digits}f} %" if percent >= 0.001 or percent == 0 else f"{percent:.1e} %"
