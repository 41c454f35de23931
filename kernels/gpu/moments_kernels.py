"""Triton kernels of `kernels.moments`: tiles of the upper triangle of x'x, and sums of channels."""

# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["tokens"])
def add_products(
    x,  # [tokens, >= rows], of which the channels lie side by side
    places,  # int32 [programs, 2]: which tile, counted from row 0 and from column `start`
    total,  # float32 [rows, rows - start]
    tokens,
    stride,  # of a token of x
    start,
    rows,
    TILE: tl.constexpr,
    STEP: tl.constexpr,  # tokens that are summed by one product
    FULL: tl.constexpr,  # every tile is whole
    PRECISION: tl.constexpr,  # of products of float32
):
    """total[i, j] += sum over the tokens, in order, of x[:, i] * x[:, start + j]; a program a
    tile, which is added to the total once."""
    place = places + 2 * tl.program_id(0).to(tl.int64)
    i = tl.load(place) * TILE + tl.arange(0, TILE)
    j = start + tl.load(place + 1) * TILE + tl.arange(0, TILE)
    step = tl.arange(0, STEP)
    token = step.to(tl.int64)[:, None] * stride
    left = x + token + i[None, :]
    right = x + token + j[None, :]
    added = tl.zeros((TILE, TILE), dtype=tl.float32)
    for first in range(0, tokens, STEP):
        there = (first + step)[:, None] < tokens
        in_left = there & True if FULL else there & (i[None, :] < rows)
        in_right = there & True if FULL else there & (j[None, :] < rows)
        a = tl.load(left, mask=in_left, other=0.0)
        b = tl.load(right, mask=in_right, other=0.0)
        added = tl.dot(tl.trans(a), b, added, input_precision=PRECISION)
        left += STEP * stride
        right += STEP * stride
    at = total + i[:, None].to(tl.int64) * (rows - start) + (j - start)[None, :]
    inside = (i[:, None] < rows) & (j[None, :] < rows)
    tl.store(at, tl.load(at, mask=inside, other=0.0) + added, mask=inside)


@triton.jit
def _in_bfloat16(v):
    """Rounded to bfloat16, ties to even, by its bits: the interpreter's own conversion cuts."""
    bits = v.to(tl.int32, bitcast=True)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
    return tl.where(v == v, bits.to(tl.float32, bitcast=True), v)


@triton.jit(do_not_specialize=["tokens", "each"])
def sum_parts(
    x,  # [tokens, cols]
    sums,  # float32 [parts, 5, cols]
    tokens,
    stride,
    cols,
    each,  # tokens of a part
    NARROW: tl.constexpr,
    ROWS: tl.constexpr,  # tokens that are read together
    COLS: tl.constexpr,
):
    """The five sums of each part of the tokens: a program a part and COLS channels, x read once."""
    part = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(0) * COLS + tl.arange(0, COLS)
    inside = channel[None, :] < cols
    mean = tl.zeros((ROWS, COLS), dtype=tl.float32)
    mean_abs = tl.zeros((ROWS, COLS), dtype=tl.float32)
    fourth = tl.zeros((ROWS, COLS), dtype=tl.float32)
    lowest = tl.full((ROWS, COLS), float("inf"), dtype=tl.float32)
    highest = tl.full((ROWS, COLS), float("-inf"), dtype=tl.float32)
    begin = part * each
    for first in range(0, each, ROWS):
        token = first + tl.arange(0, ROWS)
        there = (token < each) & (begin + token < tokens)
        mask = there[:, None] & inside
        at = x + (begin + token)[:, None] * stride + channel[None, :]
        v = tl.load(at, mask=mask, other=0.0).to(tl.float32)
        mean += _in_bfloat16(v) if NARROW else v
        mean_abs += tl.abs(v)
        fourth += (v * v) * (v * v)
        lowest = tl.where(mask & (v < lowest), v, lowest)
        highest = tl.where(mask & (v > highest), v, highest)
    to = sums + part * 5 * cols + channel
    kept = channel < cols
    tl.store(to, tl.sum(mean, 0), mask=kept)
    tl.store(to + cols, tl.sum(mean_abs, 0), mask=kept)
    tl.store(to + 2 * cols, tl.sum(fourth, 0), mask=kept)
    tl.store(to + 3 * cols, tl.min(lowest, 0), mask=kept)
    tl.store(to + 4 * cols, tl.max(highest, 0), mask=kept)


@triton.jit(do_not_specialize=["parts"])
def join_parts(
    sums,  # float32 [parts, 5, cols]
    mean,
    mean_abs,
    fourth,
    lowest,
    highest,
    parts,
    cols,
    COLS: tl.constexpr,
):
    """Take the sums of the parts, in order, into five vectors [cols]."""
    channel = tl.program_id(0) * COLS + tl.arange(0, COLS)
    inside = channel < cols
    a = tl.load(mean + channel, mask=inside, other=0.0)
    b = tl.load(mean_abs + channel, mask=inside, other=0.0)
    c = tl.load(fourth + channel, mask=inside, other=0.0)
    low = tl.load(lowest + channel, mask=inside, other=0.0)
    high = tl.load(highest + channel, mask=inside, other=0.0)
    at = sums + channel
    for _ in range(parts):
        a += tl.load(at, mask=inside, other=0.0)
        b += tl.load(at + cols, mask=inside, other=0.0)
        c += tl.load(at + 2 * cols, mask=inside, other=0.0)
        least = tl.load(at + 3 * cols, mask=inside, other=0.0)
        most = tl.load(at + 4 * cols, mask=inside, other=0.0)
        low = tl.where(least < low, least, low)
        high = tl.where(most > high, most, high)
        at += 5 * cols
    number = b == b  # a sum of magnitudes is NaN where one of them was, and nowhere else
    tl.store(mean + channel, a, mask=inside)
    tl.store(mean_abs + channel, b, mask=inside)
    tl.store(fourth + channel, c, mask=inside)
    tl.store(lowest + channel, tl.where(number, low, b), mask=inside)
    tl.store(highest + channel, tl.where(number, high, b), mask=inside)
