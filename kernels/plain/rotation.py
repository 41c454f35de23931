"""Rotations in torch, on any device: the truth, one stage of butterflies after the other."""

from __future__ import annotations

import torch


def rotate(x: torch.Tensor, signs: torch.Tensor, small: torch.Tensor) -> torch.Tensor:
    """See `kernels.rotation`; all in one piece, x [tokens, n] of float64 or narrower."""
    (tokens, n), m = x.shape, len(small)
    p = n // m
    values = (x * signs).view(tokens, p, m)
    if m > 1:
        values = values @ small
    half = 1
    while half < p:
        left, right = values.view(tokens, p // (2 * half), 2, half * m).unbind(2)
        values = torch.stack((left + right, left - right), 2)
        half *= 2
    found: torch.Tensor = (values.view(tokens, n) * p**-0.5).to(x.dtype)
    return found
