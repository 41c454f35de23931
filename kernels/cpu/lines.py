"""`kernels.lines` for a processor: the plain passes, over as many rows as a cache holds."""

from __future__ import annotations

from torch import Tensor, cat

from qconvert.kernels.plain import lines as plain
from qconvert.kernels.plain.lines import Levels, lines_of

__all__ = ["decoded", "lines_of", "nearest_codes"]

AT_ONCE = 1 << 18  # weights


def _parts(rows: int, cols: int) -> list[slice]:
    """Of no rows, one part all the same."""
    step = max(1, AT_ONCE // max(cols, 1))
    return [slice(start, start + step) for start in range(0, max(rows, 1), step)]


def decoded(codes: Tensor, scale: Tensor, offset: Tensor | None, levels: Levels) -> Tensor:
    return cat(
        [
            plain.decoded(codes[at], scale[at], None if offset is None else offset[at], levels)
            for at in _parts(*codes.shape)
        ]
    )


def nearest_codes(w: Tensor, scale: Tensor, offset: Tensor | None, levels: Levels) -> Tensor:
    return cat(
        [
            plain.nearest_codes(w[at], scale[at], None if offset is None else offset[at], levels)
            for at in _parts(*w.shape)
        ]
    )
