"""Codes to values and back, once the scale and offset of every group are fixed: on every grid."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.grid import Lines

Floats = NDArray[np.float32]
AT_ONCE = 1 << 18  # weights: the passes over them stay in the cache


def inverse(scale: Floats) -> Floats:
    """1 / scale, or 0 where the scale is 0."""
    alive = scale != 0
    return np.where(alive, np.float32(1) / np.where(alive, scale, np.float32(1)), np.float32(0))


def _whole(levels: Floats) -> bool:
    return bool((np.diff(levels) == 1).all())


def _positions(v: Floats, levels: Floats) -> NDArray[np.intp]:
    """The position in `levels` of the level nearest to each v."""
    return np.searchsorted((levels[1:] + levels[:-1]) / 2, v)


def nearest_levels(v: Floats, levels: Floats) -> Floats:
    """The level nearest to each v; `levels` ascend. Ties of whole levels go to the even one."""
    if _whole(levels):
        return np.clip(np.rint(v), levels[0], levels[-1])
    return levels[_positions(v, levels)]


def on_lines(codes: NDArray[np.uint8], lines: Lines, levels: Floats) -> Floats:
    """scale * levels[code] + offset, [rows, cols]: what every decoder computes, in float32."""
    rows, cols = codes.shape
    flat = codes.astype(np.float32) + levels[0] if _whole(levels) else levels[codes]
    groups = lines.scale.shape[1]
    found = flat.reshape(rows, groups, cols // groups)
    found *= lines.scale[..., None]
    if lines.offset is not None:
        found += lines.offset[..., None]
    return found.reshape(rows, cols)


def nearest_codes(
    w: Floats, lines: Lines, levels: Floats, *, threads: int = 1
) -> NDArray[np.uint8]:
    """Codes [rows, cols] of the values scale * levels[code] + offset that are nearest to w.

    Where a scale is 0, the level nearest to 0. The result does not depend on `threads`.
    """
    rows, cols = w.shape
    groups, whole = lines.scale.shape[1], _whole(levels)
    codes = np.empty((rows, cols), np.uint8)
    step = max(1, AT_ONCE // max(cols, 1))

    def some(start: int) -> None:
        part = slice(start, start + step)
        v = w[part].reshape(-1, groups, cols // groups)
        if lines.offset is not None:
            v = v - lines.offset[part, :, None]
        with np.errstate(over="ignore"):
            v = v * inverse(lines.scale[part])[..., None]
        found = nearest_levels(v, levels) - levels[0] if whole else _positions(v, levels)
        codes[part] = found.reshape(-1, cols)

    with ThreadPoolExecutor(max(threads, 1)) as pool:
        list(pool.map(some, range(0, rows, step)))
    return codes
