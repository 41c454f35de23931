"""Moments damped and factored in their own memory."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from qconvert.algorithms.curvature import damped, factor
from qconvert.algorithms.root import BLOCK, STRIP, inverse_root
from qconvert.formats.refusal import Refused

SIZES = [1, 2, 31, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, STRIP + BLOCK + 77, 3 * STRIP]


def moments(size: int) -> torch.Tensor:
    """Of correlated channels of uneven strength."""
    chance = torch.Generator().manual_seed(size)
    x = torch.randn(size + 64, size, generator=chance, dtype=torch.float64)
    x = x.cumsum(1) * torch.logspace(0, -1.5, size, dtype=torch.float64)
    return (x.t() @ x / len(x)).float()


def literal(h: torch.Tensor) -> torch.Tensor:
    """The upper root of the inverse, by inverting."""
    return torch.linalg.cholesky(torch.linalg.inv(h), upper=True)


@pytest.mark.parametrize("size", SIZES)
def test_it_is_the_root_of_the_inverse(size: int) -> None:
    h = damped(moments(size), 0.01)
    wanted = literal(h)
    found = factor(h, "name")
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    assert not found.tril(-1).any()
    scale = wanted.abs().amax()
    assert float((found - wanted).abs().max() / scale) < 1e-7


@pytest.mark.parametrize("size", [64, STRIP + BLOCK + 77])
def test_threads_change_no_bit(size: int) -> None:
    """Neither those that are asked for nor those that torch may use here."""
    before = torch.get_num_threads()
    found = []
    try:
        for own, threads in ((1, 1), (1, 2), (1, 3), (2, 1), (4, 2)):
            torch.set_num_threads(own)
            h = damped(moments(size), 0.01)
            found.append((factor(h, "name", threads), h))
    finally:
        torch.set_num_threads(before)
    for root, inside in found[1:]:
        assert torch.equal(root, found[0][0])
        assert torch.equal(inside.triu(), found[0][1].triu())  # of float64


@pytest.mark.parametrize("size", [3, BLOCK + 5, STRIP + BLOCK])
@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
def test_what_is_not_positive_is_refused(size: int, at: float) -> None:
    where = round(at * (size - 1))
    for value in (0.0, -1.0, float("nan")):
        h = damped(moments(size), 0.01)
        h[where, where] = value
        with pytest.raises(Refused, match=r"a name: the second moments .* do not factor"):
            factor(h, "a name")


@pytest.mark.parametrize("at", [(0, -1), (0, 1), (-2, -1), (5, BLOCK + 3)])
def test_what_is_no_number_is_refused(at: tuple[int, int]) -> None:
    h = damped(moments(2 * BLOCK), 0.01)
    h[at] = float("nan")
    assert inverse_root(h) is None


def test_a_matrix_without_rank_needs_damping() -> None:
    x = torch.randn(40, 2 * BLOCK, generator=torch.Generator().manual_seed(0))
    second = x.t() @ x
    with pytest.raises(Refused):
        factor(second.double() - 1e-3 * torch.eye(2 * BLOCK), "name")
    h = damped(second, 0.01)
    wanted = literal(h)
    assert torch.allclose(factor(h, "name").double(), wanted, atol=1e-6 * float(wanted.abs().max()))


def test_what_lies_otherwise_is_copied() -> None:
    h = damped(moments(BLOCK + 3), 0.01)
    kept = h.clone()
    upper = factor(h.t(), "name")
    assert torch.equal(h, kept)
    assert torch.equal(upper, factor(h, "name"))


def test_damped_is_its_definition_and_a_matrix_of_its_own() -> None:
    second = moments(700)
    kept = second.clone()
    h = damped(second, 0.03)
    mean = float(second.double().diagonal().mean())
    wanted = second.double() + 0.03 * mean * torch.eye(700, dtype=torch.float64)
    assert torch.allclose(h, wanted, rtol=1e-12, atol=0)
    order = torch.randperm(700, generator=torch.Generator().manual_seed(1))
    assert torch.equal(damped(second, 0.03, order), h[order][:, order])
    assert second.dtype == torch.float32
    wide = second.double()
    damped(wide, 0.03).zero_()
    h.zero_()
    assert torch.equal(second, kept)
    assert torch.equal(wide, kept.double())


def test_no_moments_are_the_identity() -> None:
    h = damped(torch.zeros(5, 5), 0.01)
    assert torch.equal(h, torch.eye(5, dtype=torch.float64))
    assert torch.equal(factor(h, "name"), torch.eye(5))


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read as Linux tells it")
def test_one_matrix_and_its_root_are_all_that_is_held() -> None:
    """Less than half a matrix of float64 for panels, beside the matrix and U in float32."""
    code = """
import torch
from qconvert.algorithms.curvature import damped, factor

def told(key):
    with open("/proc/self/status") as lines:
        return next(int(one.split()[1]) for one in lines if one.startswith(key)) * 1024

n = 4096
second = torch.eye(n)
factor(damped(second[:600, :600], 0.01), "warm", 1)
before = told("VmRSS")
with open("/proc/self/clear_refs", "w") as reset:
    reset.write("5")
factor(damped(second, 0.01, torch.arange(n)), "name", 1)
print((told("VmHWM") - before) / (8 * n * n))
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert 1.4 < float(done.stdout) < 2.0
