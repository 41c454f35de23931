"""Sums over tokens of what a linear reads: second moments, and one number for each channel.

The bodies add to running sums that the caller keeps, in float32 and in a fixed order: the same
tokens in the same parts give the same bits on one device. Between devices they differ as the order
of a float32 sum does. Parts of tokens are summed one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from qconvert.kernels.bodies import Body, body_for, module

if TYPE_CHECKING:
    import torch

VECTORS = ("mean", "mean_abs", "fourth", "lowest", "highest")
"""Sums of x, of |x| and of x^4; the smallest and the largest x. A NaN in a channel stays in all."""


def add_products(
    total: torch.Tensor,
    x: torch.Tensor,
    *,
    columns: tuple[int, int] | None = None,
    narrow: bool = False,
    body: Body | None = None,
) -> None:
    """Add x'x, which is symmetric, to the upper triangle of `total`: float32 [cols, cols].

    x [n, cols]: float32, float16 or bfloat16, of which products are exact in float32. What stands
    below the triangle means nothing and may change. `columns` (start, stop): `total` is
    [stop, stop - start], only these columns of the matrix down to its row `stop`, for a matrix that
    is made in blocks. `narrow`: factors are rounded to bfloat16 where the device gains by it.
    """
    start, stop = columns or (0, x.shape[1])
    if total.shape != (stop, stop - start) or not 0 <= start < stop <= x.shape[1]:
        raise ValueError(f"columns {start} to {stop} of {tuple(x.shape)}: not {tuple(total.shape)}")
    module(body_for(x.device, body), "moments").add_products(total, x, start, narrow)


def add_vectors(
    vectors: Mapping[str, torch.Tensor],
    x: torch.Tensor,
    *,
    narrow: bool = False,
    body: Body | None = None,
) -> None:
    """Take x [n, cols] into `vectors`: `VECTORS` -> float32 [cols], changed in place.

    `narrow`: the mean is of x rounded to bfloat16, as the factors of narrow products are: a shift
    would part them. Empty sums begin at 0, the smallest at infinity, the largest at -infinity.
    """
    module(body_for(x.device, body), "moments").add_vectors(vectors, x, narrow)
