"""Grids by name, found by looking: a module of `qconvert.formats`, or the module `grids` of a
package in it, that has `GRIDS`, a mapping of name to `Grid`."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Iterator, Mapping
from functools import cache

from qconvert.formats.grid import Grid
from qconvert.formats.refusal import refuse


def grid_named(name: str) -> Grid:
    """The grid called `name`; `Refused` with the known names otherwise."""
    known = _tables()
    for grids in known:
        found = grids.get(name)
        if found is not None:
            return found
    names = sorted(one for grids in known for one in grids)
    raise refuse(f"unknown grid {name!r}", f"known grids: {', '.join(names)}")


@cache
def _tables() -> tuple[Mapping[str, Grid], ...]:
    """Looked for once: a plan asks for the grid of each linear many times."""
    return tuple(_found())


def _found() -> Iterator[Mapping[str, Grid]]:
    package = importlib.import_module("qconvert.formats")
    for info in pkgutil.iter_modules(package.__path__, "qconvert.formats."):
        name = f"{info.name}.grids" if info.ispkg else info.name
        if info.ispkg and importlib.util.find_spec(name) is None:
            continue
        grids = getattr(importlib.import_module(name), "GRIDS", None)
        if grids is not None:
            yield grids
