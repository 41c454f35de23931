"""How kernels that search round: the bits of the plain bodies, under the interpreter too.

Limits are known when a kernel runs; see `storing_kernels` for those known when it is compiled. All
in float32, with every product and sum rounded on its own (`Launch.fused` false).
"""

# mypy: ignore-errors

import triton
import triton.language as tl

from qconvert.kernels.gpu.storing_kernels import place


@triton.jit
def smaller(a, b):
    """b where a is no number."""
    return tl.where(a < b, a, b)


@triton.jit
def larger(a, b):
    return tl.where(a > b, a, b)


@triton.jit
def rounded(v, low, high):
    """The whole number nearest to v, ties to even, within whole `low` and `high` of magnitude up to
    2**22: the sum with 1.5 * 2**23 has no bits below one. `high` for what is no number."""
    return (larger(smaller(v, high), low) + 12582912.0) - 12582912.0


@triton.jit
def nearest(v, low, high, levels, middles, BITS: tl.constexpr):
    """The level nearest to v: a whole number in low..high, or one of a table of 2**BITS."""
    if BITS > 0:
        return tl.load(levels + place(v, middles, BITS))
    else:
        return rounded(v, low, high)
