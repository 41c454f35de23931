"""FP4 linears: two e2m1 codes in a byte along the inputs, the even one in the low nibble."""

from __future__ import annotations

import numpy as np

from qconvert.runtimes.second.stored import E2M1, Floats, Stored, pairs, scaled


def nvfp4(packed: Stored, scale: Stored, whole: np.float32, *, divided: bool) -> Floats:
    """`scale` e4m3 [N, K/16]; `whole`: of the tensor, a divisor or a multiplier."""
    each = scale.floats()
    return scaled(_values(packed), each / whole if divided else each * whole)


def mxfp4(packed: Stored, scale: Stored) -> Floats:
    """`scale` uint8 [N, K/32]: exponents of two, less 127; 255 is NaN."""
    exponent = scale.raw().astype(np.int32)
    powers = np.ldexp(np.float32(1), np.minimum(exponent, 254) - 127)
    powers[exponent == 255] = np.nan
    return scaled(_values(packed), powers)


def _values(packed: Stored) -> Floats:
    raw = packed.raw()
    return pairs(E2M1)[raw].reshape(len(raw), -1)
