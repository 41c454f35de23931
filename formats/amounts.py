"""Amounts of bytes as people write and read them."""

from __future__ import annotations

import re

PREFIXES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
            "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}  # fmt: skip


def parse_size(text: str) -> int:
    """Bytes from a size as people write it: 500MB, 2GB, 1.5GiB. `ValueError` otherwise."""
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,18})?)\s*([kmgt]?i?)b?", text.strip().lower())
    nbytes = 0 if match is None else round(float(match[1]) * PREFIXES.get(match[2], 0))
    if nbytes == 0:
        raise ValueError(f"{text!r} is not a size; write it as 500MB, 2GB or 1.5GiB")
    return nbytes


def in_units(nbytes: float) -> tuple[float, str]:
    """In the largest decimal unit of which it is at least one: (143.61, "MB")."""
    value, unit = float(nbytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return value, unit


def show_size(nbytes: float) -> str:
    """Decimal units, enough digits to tell a size from the next: 143.61 MB, 2.031 GB."""
    value, unit = in_units(nbytes)
    return f"{value:,.0f} B" if unit == "B" else f"{value:,.5g} {unit}"
