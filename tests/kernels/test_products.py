"""Products on packed weights: against float64, and on what the writers pack."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from qconvert.formats.serving.layouts import words
from qconvert.kernels.products import quantize_rows, w4a16, w8a8

BODIES = ("plain", "cpu")
KINDS = (torch.float32, torch.float16, torch.bfloat16)
STEPS = {torch.float32: 2.0**-22, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


def four_bits(
    rows: int, cols: int, groups: int, *, zeros: bool, kind: torch.dtype = torch.float16
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """packed, scale, zero and the weights in float64; packed by the format's own packer."""
    rng = np.random.default_rng(rows * cols)
    codes = rng.integers(0, 16, (rows, cols), np.uint8)
    zero = rng.integers(0, 16, (rows, groups), np.uint8)
    scale = torch.from_numpy(rng.uniform(0.5, 2, (rows, groups)) / 16).to(kind)
    middle = torch.from_numpy(zero).double() if zeros else torch.full((rows, groups), 8.0).double()
    each = cols // groups
    weights = (torch.from_numpy(codes).double() - middle.repeat_interleave(each, 1)) * (
        scale.double().repeat_interleave(each, 1)
    )
    kept = torch.from_numpy(np.ascontiguousarray(words.pack(zero.T, 4).T)) if zeros else None
    return torch.from_numpy(words.pack(codes, 4)), scale, kept, weights


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(
    ("n", "rows", "cols", "groups"), [(1, 1, 8, 1), (3, 20, 96, 3), (2, 2050, 64, 2), (2, 9, 20, 1)]
)
def test_four_bits_are_the_product_in_float64(
    body: Any, kind: torch.dtype, zeros: bool, n: int, rows: int, cols: int, groups: int
) -> None:
    packed, scale, zero, weights = four_bits(rows, cols, groups, zeros=zeros)
    x = torch.randn(n, cols, generator=torch.Generator().manual_seed(rows)).to(kind)
    found = w4a16(x, packed, scale, zero, body=body)
    assert found.dtype == kind
    want = x.double() @ weights.t()
    summed = (cols + 1) * 2.0**-24 * (x.double().abs() @ weights.abs().t())
    assert bool(((found - want).abs() <= summed + STEPS[kind] * want.abs()).all())


def test_leading_dimensions_are_kept() -> None:
    packed, scale, zero, _ = four_bits(6, 16, 2, zeros=True)
    x = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0))
    found = w4a16(x, packed, scale, zero)
    assert found.shape == (2, 3, 6)
    assert found[1].equal(w4a16(x[1], packed, scale, zero))


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    packed, scale, zero, _ = four_bits(6, 16, 2, zeros=True)
    assert zero is not None
    for parts in (
        (torch.ones(1, 24), packed, scale, zero),
        (torch.ones(1, 16), packed, scale[:5], zero),
        (torch.ones(1, 16), packed, scale, zero[:, :1]),
        (torch.ones(1, 16), packed, torch.ones(6, 3), None),
    ):
        with pytest.raises(ValueError, match="packed"):
            w4a16(*parts)
    with pytest.raises(ValueError, match="weight"):
        w8a8(torch.ones(1, 4), torch.ones(2, 4, dtype=torch.int8), torch.ones(3))


@pytest.mark.parametrize("body", BODIES)
def test_a_token_is_rounded_by_its_own_largest(body: Any) -> None:
    x = torch.tensor([[1.0, -2.0, 0.5, 2.0], [0, 0, 0, 0], [254, 127, 1, -3]])
    codes, scale = quantize_rows(x, body=body)
    assert codes.tolist() == [[64, -127, 32, 127], [0, 0, 0, 0], [127, 64, 0, -2]]
    torch.testing.assert_close(scale, torch.tensor([2 / 127, 1e-30 / 127, 2.0]), rtol=1e-6, atol=0)
    codes, scale = quantize_rows(x, 0.5, body=body)
    assert codes[2].tolist() == [127, 127, 2, -6]
    assert scale.tolist() == [0.5] * 3


@pytest.mark.parametrize("fixed", [None, 0.03])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "rows", "cols"), [(1, 1, 1), (5, 7, 33), (3, 4, 2500)])
def test_eight_bits_are_the_same_in_both_bodies_and_exact(
    kind: torch.dtype, fixed: float | None, n: int, rows: int, cols: int
) -> None:
    source = torch.Generator().manual_seed(cols)
    x = torch.randn(n, cols, generator=source).to(kind)
    weight = torch.randint(-128, 128, (rows, cols), generator=source, dtype=torch.int8)
    scale = torch.rand(rows, generator=source)
    found = w8a8(x, weight, scale, fixed, body="plain")
    assert found.dtype == kind
    assert found.equal(w8a8(x, weight, scale, fixed, body="cpu"))
    codes, own = quantize_rows(x, fixed)
    sums = (codes.long()[:, None] * weight.long()).sum(-1)
    assert found.equal((sums.float() * own[:, None] * scale).to(kind))


@pytest.mark.parametrize("body", BODIES)
def test_the_largest_sums_of_eight_bits_are_exact(body: Any) -> None:
    weight = torch.full((1, 4096), -128, dtype=torch.int8)
    found = w8a8(torch.full((1, 4096), -1.0), weight, torch.ones(1), 1 / 128, body=body)
    assert found.item() == 4096 * 128.0
