"""Sums over tokens in Triton: against float64, cut and odd shapes, the same twice."""

from __future__ import annotations

import pytest
import torch

from qconvert.kernels.gpu.moments import places
from qconvert.kernels.moments import VECTORS, add_products, add_vectors

KINDS = [torch.float32, torch.float16]
if torch.cuda.is_available():  # the interpreter multiplies bfloat16 wrongly
    KINDS.append(torch.bfloat16)


def tokens(n: int, cols: int, device: torch.device) -> torch.Tensor:
    return torch.randn(n, cols, generator=torch.Generator().manual_seed(n + cols)).to(device)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "cols"), [(1, 1), (70, 64), (33, 65), (5, 130)])
def test_the_upper_triangle_is_that_of_float64(
    device: torch.device, kind: torch.dtype, n: int, cols: int
) -> None:
    x = tokens(n, cols, device).to(kind)
    total = torch.ones(cols, cols, device=device)
    add_products(total, x, body="gpu")
    wide = x.double()
    bound = (n + 4) * 2.0**-22 * (1 + wide.abs().t() @ wide.abs())
    assert bool(((total - 1 - wide.t() @ wide).abs() <= bound)[above(cols, device)].all())
    again = torch.ones(cols, cols, device=device)
    add_products(again, x, body="gpu")
    assert again.triu().equal(total.triu())


def above(cols: int, device: torch.device) -> torch.Tensor:
    return torch.ones(cols, cols, device=device, dtype=torch.bool).triu()


@pytest.mark.parametrize(("start", "stop"), [(0, 64), (64, 150), (100, 137)])
def test_columns_alone_are_those_of_the_whole(device: torch.device, start: int, stop: int) -> None:
    x = tokens(20, 150, device).half()
    part = torch.zeros(stop, stop - start, device=device)
    add_products(part, x, columns=(start, stop), body="gpu")
    wide = x.double()
    want = (wide.t() @ wide)[:stop, start:stop]
    torch.testing.assert_close(part.triu(-start), want.triu(-start).float(), rtol=1e-5, atol=1e-5)


def test_tokens_that_do_not_lie_side_by_side(device: torch.device) -> None:
    x = tokens(12, 40, device)
    total, want = (torch.zeros(20, 20, device=device) for _ in range(2))
    add_products(total, x[::2, ::2], body="gpu")
    add_products(want, x[::2, ::2], body="plain")
    torch.testing.assert_close(total.triu(), want.triu(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("start", "stop", "tile"), [(0, 1500, 128), (384, 1500, 128), (7, 90, 16)])
def test_tiles_hold_the_triangle_once(start: int, stop: int, tile: int) -> None:
    pairs = [tuple(pair) for pair in places(start, stop, tile, torch.device("cpu")).tolist()]
    assert len(set(pairs)) == len(pairs)
    made = torch.zeros(stop, stop - start, dtype=torch.bool)
    for i, j in pairs:
        made[i * tile : (i + 1) * tile, j * tile : (j + 1) * tile] = True
    assert bool(made[torch.ones_like(made).triu(-start)].all())
    assert len(pairs) * tile * tile < 1.3 * (stop + start + 3 * tile) * (stop - start + tile) / 2


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize(("n", "cols"), [(1, 1), (50, 130), (75, 3)])
def test_vectors_are_those_of_float64(
    device: torch.device, n: int, cols: int, narrow: bool
) -> None:
    x = tokens(n, cols, device)
    vectors = {name: torch.zeros(cols, device=device) for name in VECTORS}
    add_vectors(vectors, x, narrow=narrow, body="gpu")
    wide = x.double()
    sums = {
        "mean": (x.bfloat16().double() if narrow else wide).sum(0),
        "mean_abs": wide.abs().sum(0),
        "fourth": (wide**4).sum(0),
    }
    for name, want in sums.items():
        torch.testing.assert_close(vectors[name].double(), want, rtol=1e-5, atol=1e-5)
    assert vectors["lowest"].equal(x.amin(0).clamp(max=0))
    assert vectors["highest"].equal(x.amax(0).clamp(min=0))


def test_a_nan_stays_in_every_vector_of_its_channel(device: torch.device) -> None:
    x = torch.ones(40, 3, device=device)
    x[2, 1] = torch.nan
    vectors = {name: torch.zeros(3, device=device) for name in VECTORS}
    add_vectors(vectors, x, body="gpu")
    add_vectors(vectors, torch.ones(2, 3, device=device), body="gpu")
    for name in VECTORS:
        assert vectors[name].isnan().tolist() == [False, True, False]


def test_no_tokens_change_nothing(device: torch.device) -> None:
    x = torch.empty(0, 40, device=device)
    total = torch.ones(40, 40, device=device)
    add_products(total, x, body="gpu")
    assert bool((total == 1).all())
    vectors = {name: torch.ones(40, device=device) for name in VECTORS}
    add_vectors(vectors, x, body="gpu")
    assert all(bool((one == 1).all()) for one in vectors.values())


def test_sums_with_gaps_or_of_another_type_are_refused(device: torch.device) -> None:
    x, total = torch.ones(2, 4, device=device), torch.ones(4, 8, device=device)
    with pytest.raises(ValueError, match="gaps"):
        add_products(total[:, :4], x, body="gpu")
    with pytest.raises(ValueError, match="float64"):
        add_products(total[:, :4].double().contiguous(), x, body="gpu")
    vectors = {name: torch.ones(8, device=device)[::2] for name in VECTORS}
    with pytest.raises(ValueError, match="gaps"):
        add_vectors(vectors, x, body="gpu")
    with pytest.raises(ValueError, match="float64"):
        add_products(total[:, :4].contiguous(), x.double(), body="gpu")


def test_torch_may_have_another_usual_type(device: torch.device) -> None:
    """Loading a model changes it."""
    vectors = {name: torch.zeros(4, device=device) for name in VECTORS}
    torch.set_default_dtype(torch.float64)
    try:
        add_vectors(vectors, torch.ones(2, 4, device=device).float(), body="gpu")
    finally:
        torch.set_default_dtype(torch.float32)
    assert vectors["mean"].tolist() == [2.0] * 4
