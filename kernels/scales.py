"""What a scale can be stored as, and how a wanted one is rounded to it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

TINY = np.float32(1e-30)
"""What is smaller is stored as 0, and a sum of squares below it counts as none."""

SHORTENED = {"float16": 0, "bfloat16": 16, "float32": 8, "portable": -16, "portable5": -19}
"""What a scale can be stored as -> low bits of its float32 that are rounded away; 0: float16. Below
0: rounded to float16, then as many low bits away; -16 leaves what float16 and bfloat16 both hold
exactly, eight significant bits within float16's range and its subnormals, 65280 at most; -19 five
significant bits, 63488 at most: bfloat16 also holds them times any whole number up to 8.

Of float32, sixteen significant bits are used: then scale * code and scale * (code - zero) are exact
for eight-bit codes, and come out the same in whatever order a runtime computes them."""


def stored(a: Floats, shortened: int) -> Floats:
    """Rounded to nearest even as `SHORTENED` says; what is below TINY becomes 0."""
    if shortened == 0:
        return half(a)
    if shortened < 0:  # the last turns into infinity what was rounded up beyond float16
        return half(stored(half(a), -shortened))
    bits = np.ascontiguousarray(a, np.float32).view(np.uint32)
    odd = bits >> np.uint32(shortened) & np.uint32(1)
    bits = bits + (odd + np.uint32((1 << shortened - 1) - 1))
    bits &= np.uint32(0xFFFFFFFF ^ (1 << shortened) - 1)
    return np.where(np.abs(a) > TINY, bits.view(np.float32), np.float32(0))


def half(a: Floats) -> Floats:
    with np.errstate(over="ignore"):
        return a.astype(np.float16).astype(np.float32)
