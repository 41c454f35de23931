"""The parts of a GGUF block that hold sub-scales, as data.

The layouts are those of the `block_*` structs in llama.cpp's ggml-common.h, and of its
dequantize_row_* in ggml-quants.c. Halves and planes of codes stand with each type in `grids.py`.
"""

from __future__ import annotations

from qconvert.kernels import layouts
from qconvert.kernels.layouts import Numbers, Plane

SIGNED_BYTES = Numbers(("scales",), 16, 16, ((0, Plane(8, 16)),), signed=True)
"""Sixteen int8 sub-scales (Q6_K)."""

NIBBLE_PAIRS = Numbers(("scales", "mins"), 16, 16, ((0, Plane(4, 32)),))
"""Sixteen bytes, scale low and minimum high (Q2_K)."""

SIX_BIT_SCALES = Numbers(
    ("scales",), 16, 12, ((0, Plane(4, 16)), (8, Plane(2, 16, shift=4))), bias=32, signed=True
)
"""Sixteen 6-bit scales, stored plus 32, in twelve bytes (Q3_K).

Bytes 0..7 hold the low nibbles of scales j and j + 8; byte 8 + j % 4 the two high bits of scale j,
at bit 2 * (j // 4).
"""

SPLIT_SIX_BIT_SCALES = Numbers(
    ("scales",), 8, 6, ((0, Plane(2, 4, shift=4)), (2, Plane(4, 2))), bias=32, signed=True
)
"""Eight 6-bit scales, stored plus 32 (IQ4_XS): high bits in a 16-bit word, then low nibbles."""

SIX_BIT_PAIRS = Numbers(("scales", "mins"), 8, 12, pieces=layouts.SIX_BIT_PAIRS)
"""Eight 6-bit scales and eight 6-bit minima in twelve bytes (Q4_K, Q5_K)."""
