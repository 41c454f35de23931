"""Sums of tensors in numpy's order: the truth."""

from __future__ import annotations

import torch

from qconvert.kernels.pairwise import joined, leaves


def pairwise(terms: torch.Tensor) -> torch.Tensor:
    """The sum over the last axis of float32 that are not negative, as `numpy.sum` adds them where
    they lie side by side (numpy 2.4, `loops_utils.h.src`)."""
    starts = list(leaves(terms.shape[-1]))
    sums = torch.stack([_leaf(terms[..., at : at + count]) for at, count in starts], -1)
    found: torch.Tensor = joined(sums, terms.shape[-1])
    return found


def _leaf(terms: torch.Tensor) -> torch.Tensor:
    count = terms.shape[-1]
    total = terms.new_zeros(terms.shape[:-1])
    if count >= 8:
        eight = terms[..., :8]
        for at in range(8, count - 7, 8):
            eight = eight + terms[..., at : at + 8]
        while eight.shape[-1] > 1:
            eight = eight[..., ::2] + eight[..., 1::2]
        total = eight[..., 0]
    for at in range(count - count % 8, count):
        total = total + terms[..., at]
    return total
