"""Products on packed weights on a processor: torch's float32 product, on parts that stay small."""

from __future__ import annotations

import torch

from qconvert.kernels.plain.products import quantize_rows, weights

ROWS = 1024
"""Rows of weights that are unpacked together, a multiple of 8."""
EXACT = 1024
"""Columns of products of int8 whose sum is exact in float32: 1024 * 128 * 128 = 2^24."""


def w4a16(
    x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None
) -> torch.Tensor:
    """See `kernels.products`."""
    wide, rows = x.float(), len(packed)
    found = x.new_empty((len(x), rows))
    for start in range(0, rows, ROWS):
        part = slice(start, min(start + ROWS, rows))
        zeros = None if zero is None else zero[start // 8 : -(-part.stop // 8)]
        found[:, part] = wide @ weights(packed[part], scale[part], zeros, x.shape[1]).t()
    return found


def w8a8(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, fixed: float | None
) -> torch.Tensor:
    """See `kernels.products`; each float32 product is of as many columns as are exact."""
    codes, own = quantize_rows(x, fixed)
    sums = torch.zeros((len(x), len(weight)), dtype=torch.int32)
    for start in range(0, weight.shape[1], EXACT):
        part = slice(start, start + EXACT)
        sums += (codes[:, part].float() @ weight[:, part].float().t()).to(torch.int32)
    return (sums.float() * own[:, None] * scale).to(x.dtype)
