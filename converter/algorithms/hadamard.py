"""Orthogonal matrices that spread every input over all outputs, for any size, and fast.

A `Rotation` of size n is diag(signs) (H_p kron M) with random signs, H_p Hadamard's matrix of order
p = 2^k and M a small one of order m = n / p: Paley's Hadamard matrices where there is one (12, 20,
28, 36, ...), so that all entries are +-1/sqrt(n), else Hartley's matrix of the odd part, whose
entries are at most sqrt(2/m). Only sums in float64 in a fixed order: no result depends on threads,
as those of a QR factorisation in a linear algebra library would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import NDArray

from qconvert.kernels.rotation import rotate

if TYPE_CHECKING:
    import torch

Matrix = NDArray[np.float64]
LARGEST_SMALL = 256  # m is multiplied out, at m operations for each value


@dataclass(frozen=True, slots=True)
class Rotation:
    """x -> x Q with Q orthogonal, [n, n]."""

    signs: Matrix  # [n], +-1
    small: Matrix  # [m, m] orthogonal, m divides n, n / m a power of two

    @property
    def size(self) -> int:
        return len(self.signs)

    @overload
    def __call__(self, x: NDArray[np.floating]) -> Matrix: ...
    @overload
    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...
    def __call__(self, x: NDArray[np.floating] | torch.Tensor) -> Matrix | torch.Tensor:
        """x Q for vectors x along the last axis, [..., n]: an array in float64; a tensor on its own
        device and in its own type, by `kernels.rotation`."""
        if not isinstance(x, np.ndarray):
            return self._turned(x)
        m = len(self.small)
        wide = self.size // m
        values = (x * self.signs).reshape(*x.shape[:-1], wide, m)
        if m > 1:
            values = np.einsum("...m,mk->...k", values, self.small)
        half = 1
        while half < wide:
            pairs = values.reshape(*x.shape[:-1], wide // (2 * half), 2, half * m)
            left, right = pairs[..., 0, :], pairs[..., 1, :]
            values = np.stack([left + right, left - right], axis=-2)
            half *= 2
        return values.reshape(x.shape) / math.sqrt(wide)

    def _turned(self, x: torch.Tensor) -> torch.Tensor:
        import torch

        signs, small = (torch.from_numpy(one).to(x.device) for one in (self.signs, self.small))
        return rotate(x, signs, small)

    def matrix(self) -> Matrix:
        """Q itself, [n, n]."""
        return self(np.eye(self.size))


def rotation(size: int, *seed: int) -> Rotation:
    """The rotation of `size` with the signs that `seed` stands for."""
    raw = np.random.PCG64(seed).random_raw(size)  # this stream is the same in every version
    signs = np.where(np.asarray(raw) >> 63, -1.0, 1.0)
    return Rotation(signs, _small(size))


def _small(size: int) -> Matrix:
    """M for `size`: of the smallest order for which there is a Hadamard matrix, else Hartley's."""
    odd = size
    while odd % 2 == 0:
        odd //= 2
    order = odd
    while order <= min(size, LARGEST_SMALL):
        found = hadamard(order)
        if found is not None:
            return found / math.sqrt(order)
        if size % (2 * order):
            break
        order *= 2
    return hartley(odd)


def hadamard(order: int) -> Matrix | None:
    """A matrix of +-1 with H H' = order I, by Paley's two constructions; None where neither has
    one (or where a prime power would be needed)."""
    if order == 1:
        return np.ones((1, 1))
    if order % 4:
        return None
    if _is_prime(order - 1):  # then 3 modulo 4, and the residues are skew
        return _bordered(_residues(order - 1), -1.0) + np.eye(order)
    prime = order // 2 - 1
    if prime % 4 == 1 and _is_prime(prime):
        conference = _bordered(_residues(prime), 1.0)
        on, off = np.array([[1.0, 1.0], [1.0, -1.0]]), np.array([[1.0, -1.0], [-1.0, -1.0]])
        return np.kron(conference, on) + np.kron(np.eye(order // 2), off)
    return None


def _residues(prime: int) -> Matrix:
    """Jacobsthal's matrix: +1 where i - j is a square modulo `prime`, -1 where not, 0 for i = j."""
    character = np.full(prime, -1.0)
    character[[i * i % prime for i in range(1, prime)]] = 1.0
    character[0] = 0.0
    index = np.arange(prime)
    found: Matrix = character[(index[:, None] - index) % prime]
    return found


def _bordered(core: Matrix, sign: float) -> Matrix:
    """`core` with a row of ones above, a column of `sign` before, and 0 in the corner."""
    found = np.zeros((len(core) + 1, len(core) + 1))
    found[0, 1:], found[1:, 0], found[1:, 1:] = 1.0, sign, core
    return found


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % factor for factor in range(2, math.isqrt(n) + 1))


def hartley(order: int) -> Matrix:
    """cos + sin of 2 pi i j / order, orthonormal: orthogonal for every order."""
    index = np.arange(order)
    angle = 2 * math.pi * (np.outer(index, index) % order) / order
    return (np.cos(angle) + np.sin(angle)) / math.sqrt(order)
