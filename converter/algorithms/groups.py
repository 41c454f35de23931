"""What the fits share: weights by the groups of a grid, a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.grid import Grid, Lines
from qconvert.formats.nearest import inverse, nearest_levels

Floats = NDArray[np.float32]
AT_ONCE = 1 << 17  # weights: what an iteration touches stays in the cache


def by_rows(find: Callable[[Floats, slice], Lines], grid: Grid, w: Floats, threads: int) -> Lines:
    """`find(weights [some rows, groups, columns], which rows)` over all rows of `w` [rows, cols].

    Parts do not depend on `threads`, so neither does the result.
    """
    rows, cols = w.shape
    groups = w.reshape(rows, -1, grid.group or cols)
    step = max(1, AT_ONCE // max(cols, 1))
    parts = [slice(start, start + step) for start in range(0, rows, step)]
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        found = list(pool.map(lambda part: find(groups[part], part), parts))
    scale = np.concatenate([lines.scale for lines in found])
    offsets = [lines.offset for lines in found if lines.offset is not None]
    return Lines(scale, np.concatenate(offsets) if offsets else None)


def decoded(lines: Lines, level: Floats) -> Floats:
    """scale * level + offset, [rows, groups, columns]."""
    values = lines.scale[..., None] * level
    return values if lines.offset is None else values + lines.offset[..., None]


def nearest(g: Floats, lines: Lines, levels: Floats) -> Floats:
    """The level nearest to each weight of g [rows, groups, columns] on its line."""
    v = g if lines.offset is None else g - lines.offset[..., None]
    with np.errstate(over="ignore"):
        v = v * inverse(lines.scale)[..., None]
    return nearest_levels(v, levels)


def chosen(better: NDArray[np.bool_], new: Lines, old: Lines) -> Lines:
    """Group by group: `new` where `better`, else `old`."""
    scale = np.where(better, new.scale, old.scale)
    if new.offset is None or old.offset is None:
        return Lines(scale, None)
    return Lines(scale, np.where(better, new.offset, old.offset))
