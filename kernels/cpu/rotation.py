"""Rotations on a processor: torch's product for what is narrower than sixteen lanes, then
butterflies of whole lanes, a row in the cache, two stages in one pass over it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from qconvert.kernels.cpu.butterflies import butterflies
from qconvert.kernels.cpu.simd import LANES

AT_ONCE = 1 << 18
"""Numbers that are rotated together: they stay in the cache."""


def rotate(x: torch.Tensor, signs: torch.Tensor, small: torch.Tensor) -> torch.Tensor:
    """See `kernels.rotation`; all in one piece."""
    n, m = x.shape[1], len(small)
    inner = m
    while inner < min(n, LANES):
        inner *= 2
    first = torch.kron(_hadamard(inner // m), small)
    found = torch.empty_like(x)
    step = max(1, AT_ONCE // n)
    for part, to in zip(x.split(step), found.split(step), strict=True):
        values = (part * signs).view(-1, inner)
        values = values @ first if inner > 1 else values
        butterflies(values.numpy().reshape(-1), n, inner, np.float32((n // m) ** -0.5))
        to.copy_(values.view(-1, n))
    return found


@lru_cache(maxsize=8)
def _hadamard(order: int) -> torch.Tensor:
    """Sylvester's, of +-1, [order, order]."""
    found, pair = torch.ones(1, 1), torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    while len(found) < order:
        found = torch.kron(found, pair)
    return found
