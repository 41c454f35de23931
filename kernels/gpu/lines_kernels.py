"""Triton kernels of `kernels.lines`: every group on its own, its scale loaded once.

Matrices [rows, cols] are seen as [rows * groups, columns of a group]. A program takes GROUPS groups
and COLS columns of each.
"""

# mypy: ignore-errors

import triton
import triton.language as tl

from qconvert.kernels.gpu.rounding_kernels import rounded
from qconvert.kernels.gpu.storing_kernels import inverse, place


@triton.jit
def decode(
    codes,  # uint8 [groups, size]
    scale,  # float32 [groups]
    offset,  # float32 [groups], or any pointer
    levels,  # float32 [2**BITS], or any pointer
    values,  # float32 [groups, size]
    groups,
    size,
    low,  # the first of whole levels
    SHIFTED: tl.constexpr,  # whether there is an offset
    BITS: tl.constexpr,  # of codes of a table; 0: whole levels
    GROUPS: tl.constexpr,
    COLS: tl.constexpr,
):
    """values = scale * level + offset."""
    group = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    there = group < groups
    inside = there[:, None] & (col < size)[None, :]
    at = group[:, None] * size + col[None, :]
    code = tl.load(codes + at, mask=inside, other=0)
    if BITS > 0:
        level = tl.load(levels + (code.to(tl.int32) & ((1 << BITS) - 1)))  # never beyond it
    else:
        level = code.to(tl.float32) + low
    value = level * tl.load(scale + group, mask=there, other=0.0)[:, None]
    if SHIFTED:
        value = value + tl.load(offset + group, mask=there, other=0.0)[:, None]
    tl.store(values + at, value, mask=inside)


@triton.jit
def encode(
    w,  # float32 [groups, size]
    scale,
    offset,  # [groups]: of SHIFT 1 the offset, of SHIFT 2 the whole zero point; else any pointer
    middles,
    codes,  # uint8 [groups, size]
    groups,
    size,
    low,  # whole levels
    high,
    SHIFT: tl.constexpr,
    BITS: tl.constexpr,
    GROUPS: tl.constexpr,
    COLS: tl.constexpr,
):
    """The code of the value nearest to w, of scale * level + offset or scale * (level - zero)."""
    group = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    there = group < groups
    inside = there[:, None] & (col < size)[None, :]
    at = group[:, None] * size + col[None, :]
    v = tl.load(w + at, mask=inside, other=0.0)
    if SHIFT > 0:
        b = tl.load(offset + group, mask=there, other=0.0)[:, None]
    if SHIFT == 1:
        v = v - b
    v = v * inverse(tl.load(scale + group, mask=there, other=0.0))[:, None]
    if BITS > 0:
        code = place(v, middles, BITS)
    elif SHIFT == 2:
        code = (rounded(v, low - b, high - b) + b).to(tl.int32)
    else:
        code = (rounded(v, low, high) - low).to(tl.int32)
    tl.store(codes + at, code.to(tl.uint8), mask=inside)
