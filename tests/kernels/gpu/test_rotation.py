"""Rotations in Triton, against float64 and the plain body."""

from __future__ import annotations

import pytest
import torch

from qconvert.kernels.gpu import rotation as gpu
from qconvert.kernels.gpu.rotation import Tiling
from qconvert.kernels.rotation import rotate

BOUND = 1e-6
"""Of the largest number of the result."""
POWERS = [1, 2, 8, 64, 128, 4096, 16384, 32768]
COMPOSITES = [(6, 3), (12, 12), (20, 20), (96, 12), (344, 43), (576, 36), (1536, 12), (5120, 20)]
WIDE = [(11008, 43), (13824, 108), (14336, 28), (18944, 148), (53248, 104)]


def parts(n: int, m: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Signs and a matrix for n numbers; orthogonal, no zeros."""
    chance = torch.Generator().manual_seed(n)
    signs = torch.randint(0, 2, (n,), generator=chance) * 2.0 - 1
    small = torch.linalg.qr(torch.randn(m, m, generator=chance, dtype=torch.float64))[0]
    return signs, small.float() if m > 1 else torch.ones(1, 1)


def drawn(n: int, tokens: int) -> torch.Tensor:
    return torch.randn(tokens, n, generator=torch.Generator().manual_seed(n + 1))


def check(n: int, m: int, tokens: int, device: torch.device) -> None:
    (signs, small), x = parts(n, m), drawn(n, tokens)
    right = rotate(x.double(), signs, small)
    x, signs, small = (one.to(device) for one in (x, signs, small))
    found = rotate(x, signs, small, body="gpu")
    assert found.dtype == x.dtype
    assert float((found.cpu() - right).abs().max()) <= BOUND * float(right.abs().max())


@pytest.mark.parametrize("n", POWERS)
@pytest.mark.parametrize("tokens", [1, 3])
def test_powers_of_two_are_those_of_the_plain_body_to_the_bit(
    n: int, tokens: int, device: torch.device
) -> None:
    check(n, 1, tokens, device)
    x, (signs, small) = drawn(n, tokens).to(device), parts(n, 1)
    signs, small = signs.to(device), small.to(device)
    plain = rotate(x, signs, small, body="plain")
    assert torch.equal(rotate(x, signs, small, body="gpu"), plain)


@pytest.mark.parametrize(("n", "m"), COMPOSITES + WIDE)
def test_composites_are_within_the_bound(n: int, m: int, device: torch.device) -> None:
    check(n, m, 1 if n > 8192 else 3, device)


@pytest.mark.parametrize(("n", "m"), [(64, 1), (24, 3)])
def test_more_vectors_than_one_program_takes(n: int, m: int, device: torch.device) -> None:
    check(n, m, Tiling.of(n, m).rows + 5, device)


def test_a_matrix_that_is_too_large_is_multiplied_by_torch(device: torch.device) -> None:
    check(2 * 259, 259, 2, device)
    assert 259 > gpu.WIDEST


@pytest.mark.parametrize(("n", "m"), [(128, 1), (96, 12), (53248, 104)])
def test_narrow_types_are_rounded_once(n: int, m: int, device: torch.device) -> None:
    signs, small = (one.to(device) for one in parts(n, m))
    kinds = [torch.float16] + [torch.bfloat16] * (device.type == "cuda")
    for kind in kinds:  # the interpreter cuts bfloat16
        x = drawn(n, 1).to(device, kind)
        found, right = rotate(x, signs, small, body="gpu"), rotate(x.float(), signs, small)
        assert found.dtype == kind
        last = torch.finfo(kind).eps * right.abs() + 1e-5
        assert bool(((found.float() - right).abs() <= 0.51 * last).all())


def test_what_is_no_number_stays_in_its_vector(device: torch.device) -> None:
    signs, small = (one.to(device) for one in parts(64, 1))
    x = drawn(64, 3).to(device)
    x[1, 5] = float("nan")
    found = rotate(x, signs, small, body="gpu")
    assert found.isnan().any(1).tolist() == [False, True, False]
    assert bool(found[1].isnan().all())


def test_every_vector_is_covered_once() -> None:
    """What a program takes, for all sizes of real models and some others."""
    for n, m in [(n, 1) for n in POWERS] + COMPOSITES + WIDE + [(29568, 231), (2 * 251, 251)]:
        cut = Tiling.of(n, m)
        assert cut.parts * cut.chunk * m == n
        assert cut.rows == 1 or cut.parts == 1
        assert m == 1 or cut.rows * cut.chunk >= gpu.LEAST
        assert cut.rows * cut.chunk * cut.wide <= gpu.LARGEST
