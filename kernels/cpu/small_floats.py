"""Small floats on a processor: the loops of `small_float_loops` on the memory of tensors."""

from __future__ import annotations

import torch

from qconvert.kernels.cpu import small_float_loops as loops
from qconvert.kernels.minifloat import MiniFloat


def rounded(v: torch.Tensor, kind: MiniFloat) -> torch.Tensor:
    return nearest(v.contiguous().view(1, -1), v.new_ones(1, 1), kind).view(v.shape)


def nearest(w: torch.Tensor, scale: torch.Tensor, kind: MiniFloat) -> torch.Tensor:
    return torch.from_numpy(loops.nearest(w.numpy(), scale.numpy(), kind))


def errors(
    w: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, kind: MiniFloat
) -> torch.Tensor:
    return torch.from_numpy(loops.errors(w.numpy(), weight.numpy(), scale.numpy(), kind))
