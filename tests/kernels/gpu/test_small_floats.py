"""Small floats in Triton, bit for bit what plain torch makes of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qconvert.formats.minifloat import GRIDS, float_search
from qconvert.kernels import small_floats
from qconvert.kernels.minifloat import E2M1, E4M3, MiniFloat


def weights(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Of many sizes, with groups of next to nothing, and one whose square is infinite."""
    made = torch.Generator().manual_seed(shape[-1])
    w = torch.randn(shape, generator=made) * torch.randn(shape, generator=made).exp()
    w[0, :128] = 0
    if len(w) > 2:
        w[1, 0], w[2] = 1e25, w[2] * 1e-33
    return w.to(device)


@pytest.mark.parametrize("kind", [E4M3, E2M1])
def test_codes_of_the_nearest_values(kind: MiniFloat, device: torch.device) -> None:
    levels = torch.from_numpy(kind.levels.copy())
    ties = (levels[1:] + levels[:-1]) / 2
    far = torch.full_like(ties, 1e9)
    beside = (torch.nextafter(ties, far), torch.nextafter(ties, -far))
    odd = torch.tensor([0, -0.0, torch.inf, -torch.inf, 3e38, 1e-45])
    values = torch.cat([levels, ties, *beside, odd]).to(device)
    found = small_floats.rounded(values, kind, body="gpu")
    assert torch.equal(found, small_floats.rounded(values, kind, body="plain"))


@pytest.mark.parametrize("shape", [(0,), (2, 3), (3, 1500), (2, 4096)])
def test_codes_of_any_shape(shape: tuple[int, ...], device: torch.device) -> None:
    values = torch.linspace(-9, 9, int(torch.tensor(shape).prod()), device=device).view(shape)
    found = small_floats.rounded(values, E2M1, body="gpu")
    assert torch.equal(found, small_floats.rounded(values, E2M1, body="plain"))


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("kind", [E4M3, E2M1])
@pytest.mark.parametrize(("cols", "group"), [(64, 16), (24, 3), (1000, 1000), (272, 272)])
def test_codes_and_errors(kind: MiniFloat, cols: int, group: int, device: torch.device) -> None:
    w = weights((3, cols), device)
    weight = torch.rand(cols, 2, device=device)[:, 0]  # every second number in memory
    scale = torch.rand(3, cols // group, device=device) + 0.01
    for run, arguments in (
        (small_floats.nearest, (w, scale, kind)),
        (small_floats.errors, (w, weight, scale, kind)),
    ):
        both: Any = [run(*arguments, body=body) for body in ("gpu", "plain")]  # type: ignore[operator]
        assert torch.equal(*both)


@pytest.mark.parametrize("shape", [(1, 128), (5, 384)])
@pytest.mark.parametrize("name", GRIDS)
def test_fits(name: str, shape: tuple[int, int], device: torch.device) -> None:
    w = weights(shape, device).clamp(max=40)
    grid: Any = GRIDS[name]
    grid = grid.bound(float(w.abs().max())) if hasattr(grid, "bound") else grid
    search = float_search(grid)
    assert search is not None
    made = torch.Generator().manual_seed(1)
    weight = torch.rand(shape[1], generator=made).to(device)
    codes, params = small_floats.fit(w, weight, search, body="gpu")
    plain, others = small_floats.fit(w, weight, search, body="plain")
    assert torch.equal(codes, plain)
    assert all(torch.equal(params[key], others[key]) for key in others)
