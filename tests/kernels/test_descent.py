"""Feedback and descent: both bodies give the same bits, and no step raises the error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from qconvert.formats.gguf.grids import GRIDS
from qconvert.formats.integer import IntegerGrid
from qconvert.formats.minifloat import GRIDS as FLOATS
from qconvert.kernels.descent import NONE, State, descend, feed_back
from qconvert.kernels.searches import (
    SuperAffine,
    SuperSymmetric,
    Table,
)

COLS = 256
ALL = [
    *GRIDS.values(),
    IntegerGrid(3, 32, symmetric=False),
    IntegerGrid(4, 64, scale="bfloat16"),
    IntegerGrid(4, 64, scale="portable"),
    IntegerGrid(4, 32, symmetric=False, scale="portable"),
    IntegerGrid(4, 32, scale="portable5"),
    FLOATS["fp8_channel"],
    FLOATS["mxfp4"],
]
NAMES = [grid.name for grid in ALL]


def problem(rows: int = 20, seed: int = 0) -> tuple[Any, Any]:
    """Weights [rows, cols] and correlated second moments [cols, cols]."""
    random = np.random.default_rng(seed)
    mix = random.standard_normal((COLS, COLS)) * 0.06 + np.eye(COLS)
    x = random.standard_normal((2 * COLS, COLS)) @ mix
    moments = x.T @ x / len(x) + 0.01 * np.eye(COLS)
    return (random.standard_normal((rows, COLS)) * 0.02).astype(np.float32), moments


def state_of(grid: Any, tensor: Any) -> State:
    def turned(name: str) -> Any:
        return np.ascontiguousarray(tensor.params[name].astype(np.float32).T)

    params = tensor.params
    if isinstance(grid.search, Table):
        return State(np.ascontiguousarray(grid.lines(tensor).scale.T))
    if isinstance(grid.search, SuperSymmetric):
        return State(turned("scales"), d=turned("d")[0])
    if isinstance(grid.search, SuperAffine):
        return State(turned("scales"), turned("mins"), turned("d")[0], turned("dmin")[0])
    offset = next((turned(name) for name in ("m", "zero") if name in params), NONE)
    return State(turned("d"), offset)


def error(values: Any, targets: Any, moments: Any) -> Any:
    off = (values - targets).astype(np.float64)
    return (off @ moments * off).sum(1)


@pytest.mark.parametrize("grid", ALL, ids=NAMES)
def test_descent_lowers_the_error_and_bodies_agree(grid: Any) -> None:
    w, moments = problem()
    start = grid.quantize(w)
    values = grid.decode(start)
    h = moments.astype(np.float32)
    gradient = h @ (values - w).T
    found = {}
    for body in ("plain", "cpu"):
        levels = np.ascontiguousarray(grid.levels[start.codes].T)
        state = state_of(grid, start)
        change = descend(gradient, h, levels, state, grid.search, sweeps=2, body=body)  # type: ignore[arg-type]
        found[body] = (levels, state.scale, state.offset, state.d, state.dmin, change)
    for plain, fast in zip(found["plain"], found["cpu"], strict=True):
        assert np.array_equal(plain, fast)
    before = error(values, w, moments)
    after = error(values + found["cpu"][-1].T, w, moments)
    assert (after <= before * 1.0001).all()
    assert after.sum() < 0.85 * before.sum()


@pytest.mark.parametrize("grid", ALL, ids=NAMES)
def test_feedback_beats_nearest_and_bodies_agree(grid: Any) -> None:
    w, moments = problem(seed=1)
    start = grid.quantize(w)
    lines = grid.lines(start)
    factor = np.linalg.cholesky(np.linalg.inv(moments)).T.astype(np.float32)
    turned = np.ascontiguousarray(w.T)
    scale = np.ascontiguousarray(lines.scale.T)
    offset = None if lines.offset is None else np.ascontiguousarray(lines.offset.T)
    plain = feed_back(turned, factor, scale, offset, grid.levels, body="plain")
    fast = feed_back(turned, factor, scale, offset, grid.levels, body="cpu")
    assert np.array_equal(plain[0], fast[0])
    assert np.array_equal(plain[1], fast[1])
    groups = np.arange(COLS) // (COLS // len(scale))
    values = scale[groups] * grid.levels[fast[0]]
    if offset is not None:
        values = values + offset[groups]
    near = error(grid.decode(start), w, moments).sum()
    assert error(values.T, w, moments).sum() < 0.9 * near


def as_tensors(state: State) -> State:
    return State(*(torch.from_numpy(one.copy()) for one in (
        state.scale, state.offset, state.d, state.dmin
    )))  # fmt: skip


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "Q4_1"])
def test_descent_on_tensors_changes_them_in_place(name: str) -> None:
    grid = GRIDS[name]
    w, moments = problem(rows=5)
    start = grid.quantize(w)
    h = moments.astype(np.float32)
    gradient = h @ (grid.decode(start) - w).T
    levels = np.ascontiguousarray(grid.levels[start.codes].T)
    state = state_of(grid, start)
    tensors = [torch.from_numpy(one.copy()) for one in (gradient, h, levels)]
    same = as_tensors(state)
    wide = torch.zeros(2 * COLS, 5)  # the caller's matrix, of which the panel is a view
    wide[COLS:] = tensors[2]
    change = descend(gradient, h, levels, state, grid.search)
    found = descend(*tensors[:2], wide[COLS:], same, grid.search)
    assert isinstance(found, torch.Tensor)
    assert np.array_equal(found.numpy(), change)
    assert np.array_equal(wide[COLS:].numpy(), levels)
    assert not wide[:COLS].any()
    for mine, its in zip(
        (same.scale, same.offset, same.d, same.dmin),
        (state.scale, state.offset, state.d, state.dmin),
        strict=True,
    ):
        assert np.array_equal(mine.numpy(), its)
    assert np.array_equal(tensors[0].numpy(), gradient)  # read, never written


@pytest.mark.parametrize("body", ["plain", "cpu"])
def test_feedback_on_tensors_gives_tensors(body: Any) -> None:
    grid = IntegerGrid(3, 32, symmetric=False)
    w, moments = problem(rows=5, seed=1)
    lines = grid.lines(grid.quantize(w))
    factor = np.linalg.cholesky(np.linalg.inv(moments)).T.astype(np.float32)
    given = (w.T.copy(), factor, lines.scale.T.copy(), lines.offset.T.copy())
    codes, errors = feed_back(*given, grid.levels)
    found = feed_back(*map(torch.from_numpy, given), grid.levels, body=body)
    assert found[0].dtype == torch.uint8
    assert np.array_equal(found[0].numpy(), codes)
    assert found[1].dtype == torch.float32
    assert np.array_equal(found[1].numpy(), errors)
    below = torch.from_numpy(factor + np.tril(np.ones_like(factor), -1))  # what no body reads
    given = tuple(map(torch.from_numpy, given))
    again = feed_back(given[0], below, *given[2:], grid.levels, body=body)
    assert torch.equal(again[0], found[0])
    assert torch.equal(again[1], found[1])
