"""Rotations on a processor, against the matrix that they stand for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qconvert.algorithms.hadamard import rotation
from qconvert.kernels.bodies import Body
from qconvert.kernels.rotation import rotate

BOUND = 1e-6
"""Of the largest number of the result."""
SIZES = [1, 2, 3, 9, 12, 16, 20, 32, 40, 64, 96, 100, 344, 576, 768, 1536, 4096, 5120, 8192, 16384]
WIDE = [11008, 14336, 18944, 53248]
BODIES: tuple[Body, ...] = ("plain", "cpu")


def wanted(size: int, x: torch.Tensor) -> torch.Tensor:
    """In float64, by numpy's own form."""
    return torch.from_numpy(rotation(size, 7)(x.double().numpy()))


def turned(size: int, x: torch.Tensor, body: Body | None) -> torch.Tensor:
    turn = rotation(size, 7)
    return rotate(x, torch.from_numpy(turn.signs), torch.from_numpy(turn.small), body=body)


def drawn(size: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, size, generator=torch.Generator().manual_seed(size))


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("size", SIZES + WIDE)
def test_it_is_within_its_bound(size: int, body: Body) -> None:
    x = drawn(size, 2, 3)
    found = turned(size, x, body)
    assert found.shape == x.shape
    assert found.dtype == torch.float32
    right = wanted(size, x)
    assert float((found - right).abs().max()) <= BOUND * float(right.abs().max())


@pytest.mark.parametrize("body", BODIES)
def test_one_channel_far_above_the_others_is_spread(body: Body) -> None:
    """What rotations are for; a channel at the end, so no stage is left out."""
    x = drawn(1536, 4)
    x[:, -1] = 1e4
    found, right = turned(1536, x, body), wanted(1536, x)
    assert float((found - right).abs().max()) <= BOUND * float(right.abs().max())
    assert float(found.abs().max()) < 0.05 * 1e4


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_narrow_types_are_rounded_once(kind: torch.dtype, body: Body) -> None:
    x = drawn(576, 5).to(kind)
    found = turned(576, x, body)
    right = turned(576, x.float(), "plain")
    assert found.dtype == kind
    last = torch.finfo(kind).eps * right.abs() + 1e-6
    assert bool(((found.float() - right).abs() <= 0.51 * last).all())


@pytest.mark.parametrize("size", [4, 64, 576])
def test_float64_stays_float64(size: int) -> None:
    x = drawn(size, 3).double()
    found = turned(size, x, None)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), wanted(size, x).numpy(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("body", BODIES)
def test_any_layout_and_number_of_vectors(body: Body) -> None:
    x = drawn(96, 7)
    spread = torch.empty(96, 7).copy_(x.t()).t()
    assert not spread.is_contiguous()
    assert torch.equal(turned(96, spread, body), turned(96, x, body))
    many = drawn(96, 3000)  # more than are rotated at once
    kept = many.clone()
    found = turned(96, many, body)
    assert torch.allclose(found[2991:], turned(96, many[2991:], body), rtol=0, atol=1e-6)
    assert torch.equal(many, kept)
    assert turned(96, x[:0], body).shape == (0, 96)
    assert torch.allclose(turned(96, x[0], body), turned(96, x, body)[0], rtol=0, atol=1e-6)


def test_shapes_that_do_not_fit_are_told() -> None:
    turn = rotation(96, 0)
    signs, small = torch.from_numpy(turn.signs), torch.from_numpy(turn.small)
    for x, one, two in (
        (torch.zeros(2, 95), signs, small),
        (torch.zeros(2, 96), signs, small[:, :3]),
        (torch.zeros(2, 96), signs, torch.eye(7)),
        (torch.zeros(2, 96), signs, torch.eye(32)),
    ):
        with pytest.raises(ValueError, match="signs and a matrix"):
            rotate(x, one, two)
