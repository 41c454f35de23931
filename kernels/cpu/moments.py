"""Sums over tokens on a processor: torch's own products, panel after panel of the triangle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

PANEL = 256
"""Columns of a matrix of second moments that one product makes."""
AT_ONCE = 1 << 18
"""Numbers that pass through all sums together: they stay in the cache."""


def add_products(total: torch.Tensor, x: torch.Tensor, start: int, narrow: bool) -> None:
    """See `kernels.moments`; above the triangle's panels nothing is computed."""
    x = x.float()
    stop = len(total)
    with bfloat16_factors(narrow):
        for left in range(start, stop, PANEL):
            right = min(left + PANEL, stop)
            total[:right, left - start : right - start] += x[:, :right].t() @ x[:, left:right]


def add_vectors(vectors: Mapping[str, torch.Tensor], x: torch.Tensor, narrow: bool) -> None:
    """See `kernels.moments`: sums as products with ones, of parts that stay in the cache."""
    for part in x.float().split(max(1, AT_ONCE // x.shape[1])):
        ones = part.new_ones(len(part))
        vectors["mean"].add_(ones @ (part.bfloat16().float() if narrow else part))
        vectors["mean_abs"].add_(ones @ part.abs())
        vectors["fourth"].add_(ones @ part.square().square_())
        torch.minimum(vectors["lowest"], part.amin(0), out=vectors["lowest"])
        torch.maximum(vectors["highest"], part.amax(0), out=vectors["highest"])


@contextmanager
def bfloat16_factors(wanted: bool) -> Iterator[None]:
    """Within, torch may round the factors of float32 products on the processor to bfloat16; it
    still sums in float32. Of values that are bfloat16 already, nothing is lost."""
    usual = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if wanted else usual)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(usual)
