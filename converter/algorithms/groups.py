"""What the fits share: weights by the groups of a grid, a few rows at a time.

What shares parameters is one group: where a grid has rows together, their columns follow each other
in it, and the lines found are those of all these rows.
"""

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
    parts = _parts(rows, cols, grid.together)

    def some(part: slice) -> Lines:
        count = min(grid.together, part.stop - part.start)
        lines = find(_grouped(w[part], grid, count), part)
        if count == 1:
            return lines
        offset = None if lines.offset is None else lines.offset.repeat(count, 0)
        return Lines(lines.scale.repeat(count, 0), offset)

    with ThreadPoolExecutor(max(threads, 1)) as pool:
        found = list(pool.map(some, parts))
    scale = np.concatenate([lines.scale for lines in found])
    offsets = [lines.offset for lines in found if lines.offset is not None]
    return Lines(scale, np.concatenate(offsets) if offsets else None)


def _parts(rows: int, cols: int, together: int) -> list[slice]:
    """Whole blocks of rows, and then what is left of one."""
    step = together * max(1, AT_ONCE // max(cols * together, 1))
    whole = rows - rows % together
    parts = [slice(start, min(start + step, whole)) for start in range(0, whole, step)]
    return [*parts, slice(whole, rows)] if whole < rows else parts


def _grouped(w: Floats, grid: Grid, count: int) -> Floats:
    """[rows, cols] -> [rows / count, groups, count * columns]"""
    columns = grid.group or w.shape[1]
    turned = w.reshape(len(w) // count, count, -1, columns).swapaxes(1, 2)
    return turned.reshape(*turned.shape[:2], count * columns)


def by_group(each: Floats, grid: Grid) -> Floats:
    """The sum of `each` [rows, cols] over what shares parameters, [rows, groups]."""
    rows, cols = each.shape
    found: Floats = each.reshape(rows, -1, grid.group or cols).sum(-1)
    if grid.together > 1:
        starts = np.arange(0, rows, grid.together)
        found = np.add.reduceat(found, starts).repeat(grid.together, 0)[:rows]
    return found


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
