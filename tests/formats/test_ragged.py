"""Rows that are no whole groups: the last group is a group of its own, shorter than the others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qconvert.formats.integer import GRIDS, IntegerGrid
from qconvert.formats.ragged import cut, filled, lacking

RAGGED = [
    IntegerGrid(3, 40, True, "portable"), IntegerGrid(4, 32, True, "portable5"),
    IntegerGrid(4, 48, False, "float16"), IntegerGrid(2, 64, True, "float32"),
    IntegerGrid(8, 128, False, "bfloat16"),
]  # fmt: skip
every_grid = pytest.mark.parametrize("grid", RAGGED, ids=lambda grid: grid.name)


def _matrix(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    w = np.random.default_rng(seed).standard_t(5, (rows, cols)).astype(np.float32)
    w[:: max(1, rows // 3)] *= np.float32(0.01)
    return w * np.float32(0.05)


def test_columns_that_are_lacking() -> None:
    assert [lacking(cols, 40) for cols in (40, 41, 79, 80, 576, 768)] == [0, 39, 1, 0, 24, 32]
    assert lacking(77, 0) == 0
    assert GRIDS["int3_g40_portable"] == IntegerGrid(3, 40, True, "portable")


@settings(max_examples=80, deadline=None)
@given(
    grid=st.sampled_from(RAGGED),
    cols=st.integers(1, 200),
    rows=st.integers(1, 20),
    seed=st.integers(0, 999),
    weighted=st.booleans(),
)
def test_a_short_group_is_fitted_as_a_row_of_its_own(
    grid: IntegerGrid, cols: int, rows: int, seed: int, weighted: bool
) -> None:
    """All whole groups as without it, and the last as a grid of one group a row fits it."""
    w = _matrix(rows, cols, seed)
    weight = np.full(cols, 0.25, np.float32) if weighted else None
    tensor = grid.quantize(w, weight, threads=2)
    at = cols - cols % grid.group
    groups = -(-cols // grid.group)
    assert tensor.codes.shape == (rows, cols)
    assert all(values.shape == (rows, groups) for values in tensor.params.values())
    parts = []
    if at:
        parts.append(grid.quantize(w[:, :at]))
    if at < cols:
        row = IntegerGrid(grid.bits, 0, grid.symmetric, grid.scale)
        parts.append(row.quantize(w[:, at:]))
    assert np.array_equal(tensor.codes, np.concatenate([one.codes for one in parts], 1))
    for name, values in tensor.params.items():
        assert np.array_equal(values, np.concatenate([one.params[name] for one in parts], 1))
    values = np.concatenate(
        [(grid if one.shape[1] % grid.group == 0 else row).decode(one) for one in parts], 1
    )
    assert np.array_equal(grid.decode(tensor), values)
    again = grid.place(w, grid.lines(tensor))
    alive = tensor.params["d"] != 0
    assert again.codes.shape == (rows, cols)
    assert np.array_equal(again.params["d"][alive], tensor.params["d"][alive])


@every_grid
@pytest.mark.parametrize("cols", [1, 16, 56, 96, 100, 576, 768])
def test_bytes_hold_all_of_it(grid: IntegerGrid, cols: int) -> None:
    tensor = grid.quantize(_matrix(18, cols))
    packed = grid.pack(tensor)
    assert packed.shape == (18, grid.row_bytes(cols))
    again = grid.unpack(packed, cols)
    assert np.array_equal(again.codes, tensor.codes)
    for name, values in tensor.params.items():
        assert again.params[name].tobytes() == values.tobytes()
        assert again.params[name].dtype == values.dtype
    assert np.array_equal(grid.decode(again), grid.decode(tensor))


@every_grid
@pytest.mark.parametrize("cols", [96, 100])
def test_both_bodies_give_the_same_bits(grid: IntegerGrid, cols: int) -> None:
    w = _matrix(19, cols)
    weight = np.exp(np.random.default_rng(1).standard_normal(cols)).astype(np.float32)
    one, other = (grid.pack(grid.quantize(w, weight, body=body)) for body in ("cpu", "plain"))
    assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("cols", [56, 96])
def test_the_fit_of_a_short_group_is_near_an_exhaustive_one(cols: int) -> None:
    """Three bits, groups of 40, by weighted error over a fine grid of scales of both signs."""
    grid = IntegerGrid(3, 40, True, "portable")
    w = _matrix(40, cols, seed=3)
    weight = np.exp(np.random.default_rng(1).standard_normal(cols)).astype(np.float32)
    best = 0.0
    for start in range(0, cols, 40):
        g, each = w[:, start : start + 40], weight[start : start + 40]
        reach = np.abs(g).max(1, keepdims=True) / 4
        least = np.full(len(g), np.inf)
        for stretch in [*np.linspace(0.4, 1.4, 400), *np.linspace(-1.4, -0.4, 400)]:
            d = stretch * reach
            error = (each * np.square(g - d * np.clip(np.rint(g / d), -4, 3))).sum(1)
            least = np.minimum(least, error)
        best += least.sum()
    ours = (weight * np.square(w - grid.decode(grid.quantize(w, weight)))).sum()
    assert ours < 1.04 * best


def test_filled_and_cut_are_inverse() -> None:
    grid = IntegerGrid(3, 40, True, "portable")
    w = _matrix(5, 56)
    whole = filled(w, 40)
    assert whole.shape == (5, 80)
    assert not whole[:, 56:].any()
    assert filled(whole, 40) is whole
    tensor = grid.quantize(whole)
    assert not grid.decode(tensor)[:, 56:].any()
    assert np.array_equal(cut(tensor, 56).codes, grid.quantize(w).codes)
    assert cut(tensor, 80) is tensor
