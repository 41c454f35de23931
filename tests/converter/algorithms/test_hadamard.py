"""Rotations of any size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qconvert.algorithms.hadamard import hadamard, hartley, rotation


@pytest.mark.parametrize("size", [1, 2, 64, 80, 96, 100, 192, 576, 768, 896, 9, 26])
def test_it_is_orthogonal_and_flat(size: int) -> None:
    turn = rotation(size, 1)
    q = turn.matrix()
    np.testing.assert_allclose(q @ q.T, np.eye(size), atol=1e-13)
    assert np.abs(q).max() <= np.sqrt(2 / size) + 1e-12


@pytest.mark.parametrize("size", [2, 64, 80, 96, 576, 768, 896, 3072, 5120, 13824])
def test_sizes_of_models_have_a_hadamard_matrix(size: int) -> None:
    """All outputs weigh all inputs alike: no size in use falls back."""
    values = np.zeros(size)
    values[size // 3] = 1.0
    np.testing.assert_allclose(np.abs(rotation(size, 0)(values)), size**-0.5, atol=1e-12)


def test_the_fast_form_is_the_matrix() -> None:
    x = np.random.default_rng(0).normal(size=(3, 5, 96))
    turn = rotation(96, 4, 2)
    np.testing.assert_allclose(turn(x), x @ turn.matrix(), atol=1e-12)


@pytest.mark.parametrize("size", [64, 576, 896])
def test_tensors_are_rotated_alike_in_their_own_type(size: int) -> None:
    turn, x = rotation(size, 4), torch.randn(5, size, generator=torch.Generator().manual_seed(0))
    right = turn(x.numpy())
    assert right.dtype == np.float64
    for kind, bound in ((torch.float64, 1e-13), (torch.float32, 5e-6), (torch.bfloat16, 0.05)):
        found = turn(x.to(kind))
        assert found.dtype == kind
        np.testing.assert_allclose(found.double().numpy(), right, rtol=0, atol=bound)


@pytest.mark.parametrize("order", [1, 4, 8, 12, 20, 24, 28, 32, 36, 44, 60, 76])
def test_paley(order: int) -> None:
    h = hadamard(order)
    assert h is not None
    assert set(np.unique(h)) <= {-1.0, 1.0}
    assert np.array_equal(h @ h.T, order * np.eye(order))


def test_orders_without_a_construction() -> None:
    assert hadamard(6) is None
    assert hadamard(92) is None  # known, by other means
    assert np.allclose(hartley(7) @ hartley(7).T, np.eye(7))


def test_the_stream_of_signs_is_fixed() -> None:
    """A resumed job, on another version of numpy, must rotate alike."""
    signs = [-1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, 1]
    assert rotation(16, 0, 0).signs.tolist() == signs
    assert rotation(16, 1, 0).signs.tolist() != signs
