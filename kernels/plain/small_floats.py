"""Small floats in plain torch: the truth."""

from __future__ import annotations

import torch

from qconvert.kernels.minifloat import MiniFloat
from qconvert.kernels.plain.pairwise import pairwise


def rounded(v: torch.Tensor, kind: MiniFloat) -> torch.Tensor:
    """As `MiniFloat.rounded`, whose bits these are."""
    a = v.abs().clamp(max=kind.top)
    drop = 23 - kind.mantissa
    bits = a.contiguous().view(torch.int32)
    found = (bits + (bits >> drop & 1) + ((1 << drop - 1) - 1)) >> drop
    found -= 127 - kind.bias << kind.mantissa
    least = 2.0 ** (1 - kind.bias)  # that is not subnormal
    low = (a * ((1 << kind.mantissa) / least)).round().to(torch.int32)
    found = torch.where(a < least, low, found)
    found = torch.where(v < 0, -found, found)
    return (found + (kind.magnitudes - 1)).to(torch.uint8)


def nearest(w: torch.Tensor, scale: torch.Tensor, kind: MiniFloat) -> torch.Tensor:
    grouped = w.view(*scale.shape, -1)
    return rounded(grouped / scale[..., None], kind).view(w.shape)


def errors(
    w: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, kind: MiniFloat
) -> torch.Tensor:
    grouped = w.view(*scale.shape, -1)
    levels = torch.from_numpy(kind.levels.copy()).to(w.device)
    off = levels[rounded(grouped / scale[..., None], kind).int()]
    off *= scale[..., None]
    off -= grouped
    off *= off
    off *= weight.view(scale.shape[1], -1)
    return pairwise(off)
