"""Triton kernels of `kernels.products.w8a8`: tokens rounded to int8, and products of int8."""

# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def quantize_rows(
    x,  # [tokens, cols]
    codes,  # int8 [tokens, cols]
    scales,  # float32 [tokens]: made, or read where FIXED
    stride,  # of a token of x
    cols,
    FIXED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program a token; the order of float32 operations is that of the plain body."""
    token = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    x += token * stride
    if FIXED:
        scale = tl.load(scales + token)
    else:
        largest = tl.zeros((BLOCK,), dtype=tl.float32)
        for first in range(0, cols, BLOCK):
            v = tl.load(x + first + at, mask=first + at < cols, other=0.0).to(tl.float32)
            largest = tl.where(tl.abs(v) > largest, tl.abs(v), largest)
        top = tl.max(largest, 0)
        scale = tl.div_rn(tl.where(top < 1e-30, 1e-30, top), 127.0)
        tl.store(scales + token, scale)
    for first in range(0, cols, BLOCK):
        there = first + at < cols
        v = tl.load(x + first + at, mask=there, other=0.0).to(tl.float32)
        v = tl.div_rn(v, tl.zeros((BLOCK,), dtype=tl.float32) + scale)
        v = tl.where(v < -128.0, -128.0, tl.where(v > 127.0, 127.0, v))
        v = (v + 12582912.0) - 12582912.0  # 1.5 * 2^23: to the nearest, ties to even
        tl.store(codes + token * cols + first + at, v.to(tl.int8), mask=there)


@triton.jit(do_not_specialize=["tokens"])
def w8a8(
    x,  # int8 [tokens, cols]
    weight,  # int8 [rows, cols]
    own,  # float32 [tokens]
    scale,  # float32 [rows]
    out,  # [tokens, rows]
    tokens,
    rows,
    cols,
    FULL: tl.constexpr,  # cols is a multiple of STEP
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    AREA: tl.constexpr,  # tiles of tokens that share weights in the cache
):
    """A program: ROWS rows for TOKENS tokens; sums are int32, in any order the same."""
    down, across = tl.cdiv(tokens, TOKENS), tl.cdiv(rows, ROWS)
    band = tl.program_id(0) // (AREA * across)
    high = tl.minimum(down - band * AREA, AREA)
    within = tl.program_id(0) % (AREA * across)
    m = (band * AREA + within % high) * TOKENS + tl.arange(0, TOKENS)
    n = (within // high) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, STEP)
    at_x = x + m.to(tl.int64)[:, None] * cols + k[None, :]
    at_weight = weight + n.to(tl.int64)[None, :] * cols + k[:, None]
    in_tokens, in_rows = m < tokens, n < rows
    sums = tl.zeros((TOKENS, ROWS), dtype=tl.int32)
    for first in range(0, cols, STEP):
        if FULL:
            a = tl.load(at_x, mask=in_tokens[:, None], other=0)
            b = tl.load(at_weight, mask=in_rows[None, :], other=0)
        else:
            left = first + k < cols
            a = tl.load(at_x, mask=in_tokens[:, None] & left[None, :], other=0)
            b = tl.load(at_weight, mask=in_rows[None, :] & left[:, None], other=0)
        sums = tl.dot(a, b, sums, out_dtype=tl.int32)
        at_x += STEP
        at_weight += STEP
    mine = tl.load(own + m, mask=in_tokens, other=0.0)
    theirs = tl.load(scale + n, mask=in_rows, other=0.0)
    found = sums.to(tl.float32) * mine[:, None] * theirs[None, :]
    at = out + m.to(tl.int64)[:, None] * rows + n[None, :]
    kept = in_tokens[:, None] & in_rows[None, :]
    tl.store(at, found.to(out.dtype.element_ty), mask=kept)
