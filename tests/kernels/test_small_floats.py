"""Small floats on tensors: the codes, errors and scales that their grids find on arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from qconvert.formats.minifloat import GRIDS, MiniFloatGrid, float_search
from qconvert.formats.trtllm.grids import GRIDS as MODELOPT
from qconvert.kernels import small_floats
from qconvert.kernels.fit import usable
from qconvert.kernels.minifloat import E2M1, E4M3, MiniFloat
from qconvert.kernels.plain.pairwise import pairwise

BODIES = ["plain", "cpu"]
SHAPES = [(1, 128), (7, 256), (130, 384), (5, 1408)]


def weights(shape: tuple[int, int]) -> np.ndarray:
    """Of many sizes; some groups of zeros, some of next to nothing, one weight far off."""
    random = np.random.default_rng(shape[0])
    w = random.standard_normal(shape) * np.exp(random.standard_normal(shape))
    w[0, :128] = 0
    if shape[0] > 2:
        w[1, 0], w[2] = 60, w[2] * 1e-33
    return w.astype(np.float32)


def awkward(kind: MiniFloat) -> np.ndarray:
    """Of all sizes; every level, every tie between two, and the floats beside each tie."""
    random = np.random.default_rng(0)
    some = random.standard_normal(2000) * np.exp2(random.integers(-14, 9, 2000))
    ties = (kind.levels[1:] + kind.levels[:-1]) / 2
    far = np.float32(1e9)
    near = (np.nextafter(ties, far), np.nextafter(ties, -far))
    odd = np.float32([0, -0.0, np.inf, -np.inf, 3e38, 1e-45])
    return np.concatenate([some.astype(np.float32), kind.levels, ties, *near, odd])


def literal(w: np.ndarray, weight: np.ndarray, scale: np.ndarray, kind: MiniFloat) -> np.ndarray:
    """Errors in numpy, summed as numpy sums."""
    grouped = w.reshape(*scale.shape, -1)
    off = kind.levels[kind.rounded(grouped / scale[..., None])]
    off *= scale[..., None]
    off -= grouped
    off *= off
    off *= weight.reshape(scale.shape[1], -1)
    found: np.ndarray = off.sum(-1)
    return found


@pytest.mark.parametrize("count", [1, 7, 8, 16, 31, 128, 129, 136, 1000, 4096, 14336])
def test_sums_in_the_order_of_numpy(count: int) -> None:
    terms = np.random.default_rng(count).standard_normal((5, count)).astype(np.float32) ** 2
    assert np.array_equal(pairwise(torch.from_numpy(terms)).numpy(), terms.sum(-1))


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("kind", [E4M3, E2M1])
def test_codes_of_the_nearest_values(kind: MiniFloat, body: Any) -> None:
    values = awkward(kind)
    found = small_floats.rounded(torch.from_numpy(values), kind, body=body)
    assert np.array_equal(found.numpy(), kind.rounded(values))


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("kind", [E4M3, E2M1])
@pytest.mark.parametrize(("cols", "group"), [(64, 16), (24, 3), (1000, 1000), (4104, 4104)])
def test_errors_of_groups(kind: MiniFloat, cols: int, group: int, body: Any) -> None:
    random = np.random.default_rng(cols)
    w = random.standard_normal((4, cols)).astype(np.float32)
    weight = random.random(cols).astype(np.float32)
    scale = random.random((4, cols // group)).astype(np.float32) + np.float32(0.01)
    on = [torch.from_numpy(one) for one in (w, weight, scale)]
    found = small_floats.errors(*on, kind, body=body)
    assert np.array_equal(found.numpy(), literal(w, weight, scale, kind))


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", GRIDS)
def test_the_grid_finds_the_same(name: str, shape: tuple[int, int], body: Any) -> None:
    w = weights(shape)
    grid: Any = GRIDS[name]
    grid = grid.bound(np.abs(w).max()) if hasattr(grid, "bound") else grid
    search = float_search(grid)
    assert search is not None
    for weight in (None, np.random.default_rng(1).random(shape[1]).astype(np.float32)):
        wanted = grid.quantize(w, weight)
        known = None if weight is None else torch.from_numpy(usable(weight))
        codes, params = small_floats.fit(torch.from_numpy(w), known, search, body=body)
        assert np.array_equal(codes.numpy(), wanted.codes)
        assert params.keys() == wanted.params.keys()
        for key, values in wanted.params.items():
            assert params[key].numpy().dtype == values.dtype
            assert np.array_equal(params[key].numpy(), values)
        scale = small_floats.scale_of(params, search)
        assert np.array_equal(scale.numpy(), grid.lines(wanted).scale)


def test_the_search_takes_the_least_of_literal_errors() -> None:
    """Of `nvfp4`, by its scales and errors as numpy computes them."""
    grid: Any = GRIDS["nvfp4"]
    w = weights((7, 256))
    grid = grid.bound(np.abs(w).max())
    weight = np.ones(256, np.float32)
    start = grid.scales.nearest(np.abs(w.reshape(7, -1, 16)).max(-1) / np.float32(6))
    tried = [start, *(grid.scales.moved(start, step) for step in grid.scales.steps)]
    errors = np.stack([literal(w, weight, grid.scales.scale(one), E2M1) for one in tried])
    wanted = np.take_along_axis(
        np.stack([one["scale"] for one in tried]), errors.argmin(0)[None], 0
    )[0]
    found = grid.quantize(w).params["scale"]
    assert np.array_equal(found, wanted)
    assert (found != start["scale"]).any()


def test_parts_of_rows_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = GRIDS["fp8_block128"]
    search, w = float_search(grid), torch.from_numpy(weights((300, 256)))
    assert search is not None
    codes, params = small_floats.fit(w, None, search)
    monkeypatch.setattr(small_floats, "WEIGHTS_AT_ONCE", 1)
    again, others = small_floats.fit(w, None, search)
    assert torch.equal(codes, again)
    assert torch.equal(params["d"], others["d"])


def test_what_only_a_grid_rounds_to_has_no_search() -> None:
    grid: Any = MODELOPT["modelopt_nvfp4"]
    assert isinstance(grid, MiniFloatGrid)
    assert float_search(grid) is None


def test_a_shared_scale_is_to_be_known() -> None:
    search = float_search(GRIDS["nvfp4"])
    assert search is not None
    with pytest.raises(ValueError, match="not known"):
        small_floats.fit(torch.zeros(2, 16), None, search)
