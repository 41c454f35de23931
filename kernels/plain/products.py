"""Products on packed weights in torch, on any device: the truth."""

from __future__ import annotations

import torch

LEAST = 1e-30
"""The largest magnitude of a token is taken as this at least."""


def codes_of(words: torch.Tensor, count: int) -> torch.Tensor:
    """int32 [..., words] -> its first `count` codes of four bits, uint8, low bits first."""
    places = torch.arange(0, 32, 4, device=words.device)
    return (words.unsqueeze(-1) >> places & 15).to(torch.uint8).flatten(-2)[..., :count]


def weights(
    packed: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, cols: int
) -> torch.Tensor:
    """float32 [N, cols]: exact, since a code has five bits with its sign and a scale eleven."""
    rows, groups = scale.shape
    codes = codes_of(packed, cols).view(rows, groups, -1).float()
    zeros = 8.0 if zero is None else codes_of(zero.t(), rows).t().unsqueeze(-1).float()
    return ((codes - zeros) * scale.unsqueeze(-1).float()).view(rows, cols)


def w4a16(
    x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None
) -> torch.Tensor:
    """See `kernels.products`."""
    return (x.float() @ weights(packed, scale, zero, x.shape[1]).t()).to(x.dtype)


def quantize_rows(x: torch.Tensor, fixed: float | None) -> tuple[torch.Tensor, torch.Tensor]:
    """See `kernels.products`."""
    x = x.float()
    if fixed is None:
        scale = x.abs().amax(1).clamp_min(LEAST) / 127.0
    else:
        scale = torch.full((len(x),), fixed, device=x.device)
    return (x / scale[:, None]).round().clamp(-128, 127).to(torch.int8), scale


def w8a8(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, fixed: float | None
) -> torch.Tensor:
    """See `kernels.products`; sums of whole numbers are exact in float64."""
    codes, own = quantize_rows(x, fixed)
    sums = (codes.double() @ weight.double().t()).float()
    return (sums * own[:, None] * scale).to(x.dtype)
