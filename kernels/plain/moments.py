"""Sums over tokens in torch, on any device: the truth, as float32 sums of float32 products."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def add_products(total: torch.Tensor, x: torch.Tensor, start: int, narrow: bool) -> None:
    """See `kernels.moments`; all of the block, below the triangle too."""
    x = (x.bfloat16() if narrow else x).float()
    stop = len(total)
    total += x[:, :stop].t() @ x[:, start:stop]


def add_vectors(vectors: Mapping[str, torch.Tensor], x: torch.Tensor, narrow: bool) -> None:
    """See `kernels.moments`."""
    x = x.float()
    vectors["mean"].add_((x.bfloat16().float() if narrow else x).sum(0))
    vectors["mean_abs"].add_(x.abs().sum(0))
    vectors["fourth"].add_(x.square().square_().sum(0))
    torch.minimum(vectors["lowest"], x.amin(0), out=vectors["lowest"])
    torch.maximum(vectors["highest"], x.amax(0), out=vectors["highest"])
