"""`kernels.scales` on tensors: how a wanted scale is rounded to what is stored, the same bits."""

from __future__ import annotations

import torch

from qconvert.kernels import scales

TINY = float(scales.TINY)


def stored(a: torch.Tensor, shortened: int) -> torch.Tensor:
    """Rounded to nearest even as `scales.SHORTENED` says; what is below TINY becomes 0."""
    if shortened == 0:
        return half(a)
    if shortened < 0:  # the last turns into infinity what was rounded up beyond float16
        return half(stored(half(a), -shortened))
    bits = a.contiguous().view(torch.int32)
    odd = bits >> shortened & 1
    bits = bits + (odd + ((1 << shortened - 1) - 1)) & ~((1 << shortened) - 1)
    return torch.where(a.abs() > TINY, bits.view(torch.float32), 0.0)


def half(a: torch.Tensor) -> torch.Tensor:
    return a.to(torch.float16).to(torch.float32)


def inverse(d: torch.Tensor) -> torch.Tensor:
    """1 / d, or 0 where d is 0 or no number; the nearest float32 on every device."""
    alive = d.abs() > 0
    one = torch.ones((), dtype=torch.float32, device=d.device)  # a number would be a reciprocal
    return torch.where(alive, one / torch.where(alive, d, one), 0.0)
