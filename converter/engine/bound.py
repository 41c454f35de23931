"""Grids with a scale that a whole tensor has, or several that a runtime fuses: made for a block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qconvert.engine.block import Block
from qconvert.formats.grid import Grid


def bound(
    block: Block, grids: Mapping[str, Grid], shares: Mapping[str, Sequence[str]]
) -> dict[str, Grid]:
    """`grids`, by role, for the weights of `block` as they are now: where one is
    `formats.grid.Bindable`, the largest magnitude of the roles in `shares` fixes its scale."""
    found = dict(grids)
    for role, grid in grids.items():
        make = getattr(grid, "bound", None)
        if make is not None:
            together = shares.get(role) or (role,)
            found[role] = make(max(float(block.weight(one).abs().max()) for one in together))
    return found
