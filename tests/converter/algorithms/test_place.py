"""A linear is solved by kernels as it is by its grid's own methods: the same codes, bit for bit.

On the processor, where torch's products have one order whatever the body: what differs is found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from qconvert.algorithms import panels
from qconvert.algorithms.place import Device, SmallFloats, decoded, place_of
from qconvert.algorithms.registry import fits, rounds
from qconvert.algorithms.slots import Setting, Task
from qconvert.formats.gguf.grids import GRIDS as GGUF
from qconvert.formats.known_grids import grid_named
from qconvert.formats.minifloat import GRIDS as MINIFLOAT
from qconvert.formats.mlc.grids import GRIDS as MLC

INTEGER = (
    "int2_g16", "int3_g40_asym_bf16", "int4_g32_portable", "int4_g128_asym_portable",
    "int4_g64_asym_f32", "int5_g32_bf16", "int8_g64_asym", "int4_g32_portable5",
    "int2_channel_f32", "int4_channel_asym", "int8_channel_f32", "int8_channel_bf16",
)  # fmt: skip
NAMES = [*GGUF, *MINIFLOAT, *MLC, *INTEGER]
LARGEST = 0.5  # of weights that a grid is bound to


def grid_of(name: str) -> Any:
    grid = grid_named(name)
    return grid.bound(LARGEST) if hasattr(grid, "bound") else grid


@pytest.fixture(autouse=True)
def several_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panels, "PANEL", 32)


@pytest.fixture
def task(correlated: Callable[..., Task]) -> Callable[..., Task]:
    """`task(grid, **setting)`: a linear of three rows and two panels."""
    return lambda grid, **setting: correlated(
        grid, rows=3, cols=2 * max(grid.block, grid.group) or 64, effort=0, **setting
    )


@pytest.mark.parametrize("name", NAMES)
def test_by_plain_bodies_codes_are_those_of_the_grid(name: str, task: Callable[..., Task]) -> None:
    grid = grid_of(name)
    for step, solve in rounds().items():
        own, other = (task(grid, body=body) for body in (None, "plain"))
        wanted, found = (solve(one, fits()["weighted"], None) for one in (own, other))
        assert np.array_equal(found.codes, wanted.codes), step
        assert found.params.keys() == wanted.params.keys()
        for key, values in wanted.params.items():
            assert found.params[key].dtype == values.dtype, (step, key)
            assert np.array_equal(found.params[key], values), (step, key)
        assert torch.equal(decoded(other, found), torch.from_numpy(grid.decode(wanted))), step


@pytest.mark.parametrize("name", NAMES)
def test_a_round_leaves_what_it_starts_from(name: str, task: Callable[..., Task]) -> None:
    """Guarded recipes go back to it, where the round has not helped on rows that were held out."""
    one = task(grid_of(name))
    start = rounds()["nearest"](one, fits()["weighted"], None)
    before = {key: values.copy() for key, values in (*start.params.items(), ("", start.codes))}
    for step, solve in rounds().items():
        solve(one, fits()["weighted"], start)
        for key, values in (*start.params.items(), ("", start.codes)):
            assert np.array_equal(values, before[key]), (step, key)


def test_grids_are_solved_by_kernels() -> None:
    """Else the tests above compare a grid with itself: so it is for MLC's, but for the sweeps."""
    setting, here = Setting(body="plain"), torch.device("cpu")
    found = {name: type(place_of(grid_of(name), here, setting)) for name in NAMES}
    assert {name for name in NAMES if found[name] is SmallFloats} == {*MINIFLOAT}
    assert {name for name in NAMES if found[name] is Device} == {*GGUF, *INTEGER}
