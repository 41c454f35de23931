"""The fast fits equal the plain ones bit for bit, and do not depend on threads."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np
import pytest
import torch

from qconvert.formats.gguf.grids import GRIDS, GGUFGrid
from qconvert.formats.integer import IntegerGrid
from qconvert.kernels.bodies import Body
from qconvert.kernels.fit import fit
from qconvert.kernels.searches import (
    Symmetric,
)

SEED = 7
INTEGERS = [
    IntegerGrid(bits, group, symmetric, scale)
    for bits, group, symmetric, scale in [
        (2, 32, False, "float16"), (3, 64, True, "bfloat16"), (4, 128, True, "float32"),
        (4, 128, False, "bfloat16"), (4, 0, False, "float32"), (8, 0, True, "bfloat16"),
        (8, 32, False, "float16"), (4, 128, True, "portable"), (4, 32, False, "portable"),
        (4, 32, True, "portable5"), (3, 40, True, "portable"), (4, 48, False, "float16"),
    ]
]  # fmt: skip


def _matrix(rows: int, cols: int, seed: int = SEED) -> np.ndarray:
    """Weights with outliers, a zero group, a constant group, one-sided groups and tiny values."""
    rng = np.random.default_rng(seed)
    x = rng.standard_t(4, (rows, cols)).astype(np.float32) * np.float32(0.05)
    x[0, :32] = 0
    x[1, :256] = 0
    x[2, :64] = 0.25
    x[3, :256] = np.abs(x[3, :256])
    x[4, :256] = -np.abs(x[4, :256])
    x[5] *= np.float32(1e-6)
    x[6] *= np.float32(1e-30)
    x[7, 10] = 300.0
    return x


def _importance(cols: int) -> np.ndarray:
    return np.exp(np.random.default_rng(SEED).standard_normal(cols)).astype(np.float32)


def _bytes(
    grid: GGUFGrid | IntegerGrid, x: np.ndarray, weight: np.ndarray | None, body: Body
) -> bytes:
    return grid.pack(grid.quantize(x, weight, body=body)).tobytes()


every_grid = pytest.mark.parametrize(
    "grid", [*GRIDS.values(), *INTEGERS], ids=lambda grid: grid.name
)


@every_grid
@pytest.mark.parametrize("weighted", [False, True])
def test_fast_equals_plain(grid: GGUFGrid | IntegerGrid, weighted: bool) -> None:
    x = _matrix(21, 512)
    weight = _importance(512) if weighted else None
    assert _bytes(grid, x, weight, "cpu") == _bytes(grid, x, weight, "plain")


@every_grid
def test_threads_do_not_change_a_bit(grid: GGUFGrid | IntegerGrid) -> None:
    x = _matrix(75, 256)
    one, three = (grid.quantize(x, threads=threads) for threads in (1, 3))
    assert grid.pack(one).tobytes() == grid.pack(three).tobytes()


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 33])
def test_any_number_of_rows(rows: int) -> None:
    x = _matrix(33, 256)
    for grid in (GRIDS["Q4_0"], GRIDS["Q4_K"]):
        assert _bytes(grid, x[:rows], None, "cpu") == _bytes(grid, x[:rows], None, "plain")


@pytest.mark.parametrize("cols", [1, 15, 16, 17, 100])
def test_whole_rows_of_any_length(cols: int) -> None:
    x = _matrix(19, 256)[:, :cols]
    for grid in (grid for grid in INTEGERS if not grid.group):
        assert _bytes(grid, x, None, "cpu") == _bytes(grid, x, None, "plain")


def test_importance_counts_relative_to_its_mean() -> None:
    x, weight = _matrix(16, 256), _importance(256)
    grid = GRIDS["Q4_K"]
    scaled = weight * np.float32(2.0**-40)
    assert _bytes(grid, x, weight, "cpu") == _bytes(grid, x, scaled, "cpu")


@pytest.mark.parametrize("bad", [np.nan, -1.0])
def test_importance_must_make_sense(bad: float) -> None:
    weight = _importance(256)
    weight[3] = bad
    with pytest.raises(ValueError, match="importance"):
        GRIDS["Q4_0"].quantize(_matrix(16, 256), weight)


def test_columns_without_importance_are_harmless() -> None:
    weight = _importance(256)
    weight[:96] = 0
    for grid in GRIDS.values():
        decoded = grid.decode(grid.quantize(_matrix(16, 256)[8:], weight))
        assert np.isfinite(decoded).all()


@every_grid
def test_tensors_in_tensors_out(grid: GGUFGrid | IntegerGrid) -> None:
    search = grid.search if grid.search.size else replace(cast(Symmetric, grid.search), size=256)
    cols = 256 // search.size * search.size  # whole groups: what ragged rows are filled up to
    x, weight = _matrix(19, cols), _importance(cols)
    codes, params = fit(x, weight, search)
    for body in ("plain", None):
        found, values = fit(torch.from_numpy(x), torch.from_numpy(weight), search, body=body)
        assert np.array_equal(found.numpy(), codes)
        assert found.dtype == torch.uint8
        assert {name: v.numpy().tobytes() for name, v in values.items()} == {
            name: v.tobytes() for name, v in params.items()
        }


def test_rows_in_parts_are_the_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x, search = torch.from_numpy(_matrix(9, 256)), GRIDS["Q4_K"].search
    codes, params = fit(x, None, search, body="plain")
    monkeypatch.setattr("qconvert.kernels.fit.WEIGHTS_AT_ONCE", 512)
    again, values = fit(x, None, search, body="plain")
    assert torch.equal(codes, again)
    assert all(torch.equal(params[name], values[name]) for name in params)
    assert fit(x[:0], None, search, body="plain")[0].shape == (0, 256)


@every_grid
def test_scales_beyond_what_is_stored_are_infinite(grid: GGUFGrid | IntegerGrid) -> None:
    search = grid.search if grid.search.size else replace(cast(Symmetric, grid.search), size=256)
    x = _matrix(16, 256 // search.size * search.size) * np.float32(1e10)
    codes, params = fit(x, None, search)
    wide = getattr(search, "scale", "float16") in ("bfloat16", "float32")
    assert np.isfinite(params["d"]).all() == wide
    again, values = fit(x, None, search, body="plain")
    assert np.array_equal(codes, again)
    assert all(np.array_equal(params[name], values[name]) for name in params)


@pytest.mark.parametrize("name", ["Q4_0", "Q4_K"])
@pytest.mark.parametrize("body", ["cpu", "plain"])
def test_rows_that_are_no_whole_groups_are_refused(name: str, body: Body) -> None:
    x, search = _matrix(17, 512)[:, :300], GRIDS[name].search
    with pytest.raises(ValueError, match="no whole groups"):
        fit(x, None, search, body=body)
