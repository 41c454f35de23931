"""Descent on a GPU: the same codes, parameters and changes as the plain body, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from qconvert.kernels.descent import NONE, State, descend
from qconvert.kernels.searches import (
    Affine,
    SuperAffine,
    SuperSymmetric,
    Symmetric,
    Table,
    ZeroPoint,
)

SPANS = ((0.0, 0.0),)
UNEVEN = np.array([-6, -3, -0.5, 0, 0.5, 3, 4.25], np.float32)


def moments_of(cols: int, random: np.random.Generator) -> np.ndarray:
    x = random.standard_normal((2 * cols, cols)) @ (
        np.eye(cols) + 0.1 * random.standard_normal((cols, cols))
    )
    return x.T @ x / len(x) + 0.01 * np.eye(cols)


def start_of(search: Any, cols: int, rows: int, random: np.random.Generator) -> State:
    """Parameters not far from those of normal weights, some scales zero."""
    shape = (cols // search.size, rows)
    reach = 2.5 / np.abs(search.levels).max()
    scale = random.uniform(0.5, 1.5, shape) * reach
    scale[random.random(shape) < 0.04] = 0
    if isinstance(search, Affine):
        return State(scale, -scale * search.levels.mean())
    if isinstance(search, ZeroPoint):
        return State(scale, random.integers(0, search.top + 1, shape))
    if isinstance(search, SuperSymmetric):
        d = np.full(rows, reach / search.scale_hi)
        return State(random.integers(search.scale_lo, search.scale_hi + 1, shape), NONE, d)
    if isinstance(search, SuperAffine):
        whole = random.integers(0, search.scale_top + 1, (2, *shape))
        d = random.uniform(1, 2, (2, rows)) * reach / search.scale_top
        return State(whole[0], whole[1], d[0], d[1] * search.top / 2)
    return State(scale * random.choice([-1, 1], shape) if isinstance(search, Symmetric) else scale)


def problem(search: Any, cols: int, rows: int, device: torch.device, seed: int) -> tuple[Any, ...]:
    """(gradient, moments, levels, state), the state as what its scales can be stored as."""
    random = np.random.default_rng(seed)
    moments = moments_of(cols, random)
    state = start_of(search, cols, rows, random)
    levels = random.choice(search.levels, (cols, rows))
    gradient = moments @ random.standard_normal((cols, rows)) * 2

    def tensor(one: Any) -> torch.Tensor:
        return torch.from_numpy(np.asarray(one).astype(np.float32)).to(device)

    fields = (state.scale, state.offset, state.d, state.dmin)
    return tensor(gradient), tensor(moments), tensor(levels), State(*map(tensor, fields))


def copy(state: State) -> State:
    return State(*(one.clone() for one in (state.scale, state.offset, state.d, state.dmin)))


CASES: dict[str, tuple[Any, int, int, int]] = {  # search, columns, rows, sweeps
    "symmetric": (Symmetric(16, -8, 7, ()), 32, 3, 1),  # groups of two tiles
    "symmetric_bfloat16": (Symmetric(8, -4, 3, (), scale="bfloat16"), 16, 33, 1),
    "symmetric_portable": (Symmetric(20, -4, 3, (), scale="portable"), 20, 5, 1),
    "table_of_ggml": (Symmetric(16, -127, 113, (), table=True), 16, 4, 1),
    "affine": (Affine(12, 15, SPANS), 24, 5, 2),  # of three
    "super_symmetric": (SuperSymmetric(12, -32, 31, -128, 127, ()), 24, 5, 2),
    "super_table": (SuperSymmetric(8, -127, 113, -32, 31, (), table=True), 16, 3, 1),
    "super_affine": (SuperAffine(12, 15, 63, SPANS), 24, 5, 2),
    "super_affine_narrow": (SuperAffine(8, 3, 15, SPANS), 16, 3, 1),
    "zero_point": (ZeroPoint(12, 15, SPANS), 24, 5, 2),
    "zero_point_odd": (ZeroPoint(5, 7, SPANS, scale="float32"), 15, 9, 1),
    "table": (Table(8, UNEVEN, ()), 24, 5, 2),
    "least": (Symmetric(1, -8, 7, ()), 1, 1, 1),
}


@pytest.mark.parametrize("name", CASES)
def test_the_same_bits_as_the_plain_body(device: torch.device, name: str) -> None:
    search, cols, rows, sweeps = CASES[name]
    gradient, moments, levels, start = problem(search, cols, rows, device, len(name))
    found = {}
    for body in ("plain", "gpu"):
        chosen, state = levels.clone(), copy(start)
        change = descend(gradient, moments, chosen, state, search, sweeps=sweeps, body=body)
        found[body] = (chosen, state.scale, state.offset, state.d, state.dmin, change)
    for plain, fast in zip(found["plain"], found["gpu"], strict=True):
        assert torch.equal(plain, fast)
    assert not torch.equal(levels, found["gpu"][0])
    before = (start.scale, start.offset, start.d, start.dmin)
    moved = [
        not torch.equal(a, b) for a, b in zip(found["gpu"][1:5], before, strict=True) if len(b)
    ]
    assert all(moved) != isinstance(search, Table)


@pytest.mark.parametrize("size", [24, 8])
def test_codes_alone(device: torch.device, size: int) -> None:
    search = ZeroPoint(size, 15, SPANS)
    gradient, moments, levels, start = problem(search, 24, 3, device, 1)
    found = {}
    for body in ("plain", "gpu"):
        chosen, state = levels.clone(), copy(start)
        change = descend(
            gradient, moments, chosen, state, search, sweeps=2, parameters=False, body=body
        )
        assert torch.equal(state.scale, start.scale)
        assert torch.equal(state.offset, start.offset)
        found[body] = (chosen, change)
    for plain, fast in zip(found["plain"], found["gpu"], strict=True):
        assert torch.equal(plain, fast)
