"""Products of activations with weights that stay packed, as a serving program computes them.

Weights lie as compressed-tensors stores them, a row for each output. Activations are float32,
float16 or bfloat16, [..., K]; what comes out has their type, rounded once from float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qconvert.kernels.bodies import Body, body_for, module

if TYPE_CHECKING:
    import torch

PER_WORD = 8
"""Codes of four bits in an int32, the first in the lowest bits."""


def w4a16(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None = None,
    *,
    body: Body | None = None,
) -> torch.Tensor:
    """x @ ((codes - zeros) * scales)': [..., N].

    `packed`: int32 [N, ceil(K / 8)], codes from 0 to 15. `scale`: float [N, groups], each for
    K / groups columns in a row. `zero`: int32 [ceil(N / 8), groups], the zero points packed along
    N; None: 8 everywhere. Products are summed in float32. The weights are exact in the plain and
    the cpu body; on a GPU they are rounded once to the type of x where groups are not whole
    multiples of 128 columns, as serving programs do. `ValueError` for shapes that do not belong
    together, and for words that are not int32.
    """
    import torch

    (rows, words), (count, groups), cols = packed.shape, scale.shape, x.shape[-1]
    zeros = zero is None or zero.shape == (-(-rows // PER_WORD), groups)
    if words != -(-cols // PER_WORD) or count != rows or cols % groups or not zeros:
        raise ValueError(
            f"x {tuple(x.shape)}, packed {tuple(packed.shape)}, scale {tuple(scale.shape)},"
            f" zero {None if zero is None else tuple(zero.shape)}"
        )
    kinds = {one.dtype for one in (packed, zero) if one is not None}
    if kinds != {torch.int32}:
        raise ValueError(f"words are int32, not {', '.join(sorted(map(str, kinds)))}")
    found: torch.Tensor = module(body_for(x.device, body), "products").w4a16(
        x.reshape(-1, cols), packed, scale, zero
    )
    return found.reshape(*x.shape[:-1], rows)


def quantize_rows(
    x: torch.Tensor, fixed: float | None = None, *, body: Body | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 codes [n, K] and float32 scales [n] of x [n, K], a scale for each token.

    The largest magnitude of a token becomes 127; `fixed` is one scale for all of them. To the
    nearest, ties to even, within -128 and 127. All bodies give the same bits. Source: vLLM's
    dynamic_scaled_int8_quant (csrc/quantization/w8a8/int8).
    """
    codes, scale = module(body_for(x.device, body), "products").quantize_rows(x, fixed)
    return codes, scale


def w8a8(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    fixed: float | None = None,
    *,
    body: Body | None = None,
) -> torch.Tensor:
    """x, rounded by `quantize_rows`, times the rows of `weight` int8 [N, K]: [..., N].

    `scale`: float32 [N]. Sums are whole numbers in 32 bits (K below 2^17), then times the token's
    scale, then times the row's, each rounded to float32: all bodies give the same bits.
    `ValueError` for shapes that do not belong together, and for weights that are not int8.
    """
    import torch

    rows, cols = weight.shape
    if x.shape[-1] != cols or scale.shape != (rows,):
        raise ValueError(
            f"x {tuple(x.shape)}, weight {tuple(weight.shape)}, scale {tuple(scale.shape)}"
        )
    if weight.dtype != torch.int8:
        raise ValueError(f"weights are int8, not {weight.dtype}")
    found: torch.Tensor = module(body_for(x.device, body), "products").w8a8(
        x.reshape(-1, cols), weight, scale, fixed
    )
    return found.reshape(*x.shape[:-1], rows)
