"""Vectors times an orthogonal matrix made of signs, a small one and Hadamard's, all of them fast.

With n = p * m, p a power of two: x -> x diag(signs) (H_p kron S) / sqrt(p), where H_p is Hadamard's
matrix of order p in Sylvester's order and S is `small`, orthogonal of order m. n (m + log2 p)
operations in place of n^2. The sums of H_p are butterflies in one order in every body; those of S
follow the product of the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qconvert.kernels.bodies import Body, body_for, module

if TYPE_CHECKING:
    import torch


def rotate(
    x: torch.Tensor, signs: torch.Tensor, small: torch.Tensor, *, body: Body | None = None
) -> torch.Tensor:
    """x [..., n] rotated along its last axis, in the type of x.

    signs [n], small [m, m], on the device of x. Computed in float32 and rounded once, within 1e-6
    of the largest number of the result; float64 is computed in float64 by the plain body.
    """
    import torch

    n, m = len(signs), len(small)
    if x.shape[-1:] != (n,) or small.shape != (m, m) or n % m or (n // m) & (n // m - 1):
        raise ValueError(f"{tuple(x.shape)} by {n} signs and a matrix {tuple(small.shape)}")
    if not x.numel():
        return torch.empty_like(x)
    wide = torch.float64 if x.dtype is torch.float64 else torch.float32
    chosen: Body = "plain" if x.dtype is torch.float64 else body_for(x.device, body)
    rows = x.reshape(-1, n).contiguous()
    signs, small = signs.to(wide).contiguous(), small.to(wide).contiguous()
    found: torch.Tensor = module(chosen, "rotation").rotate(rows, signs, small)
    return found.view(x.shape)
