"""Triton kernels of `kernels.products.w4a16` for few tokens, which the reading of weights bounds.

A word holds eight columns in a row. One product takes one of the eight from each word of a tile, of
the weights and of the activations alike: so a word is read once, in the layout of the product's
operand, and taken apart in registers.
"""

# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def code_of(word, place: tl.constexpr, middle, KIND: tl.constexpr):
    """Code `place` of each word less `middle`, exactly, in the type of the activations.

    The code becomes the lowest bits of 1024 in float16, of 128 in bfloat16.
    """
    one: tl.constexpr = 0x6400 if KIND == tl.float16 else 0x4300
    first: tl.constexpr = 1024.0 if KIND == tl.float16 else 128.0
    bits = ((word >> (4 * place)) & 15) | one
    return bits.to(tl.int16).to(KIND, bitcast=True) - (middle + first).to(KIND)


@triton.jit
def middles(zero, row, group, groups, there, ZEROS: tl.constexpr):
    """Zero points of a group, float32 like `row`: packed along the rows, or 8 everywhere."""
    if ZEROS:
        word = tl.load(zero + row // 8 * groups + group, mask=there, other=0)
        return ((word >> (row % 8 * 4).to(tl.int32)) & 15).to(tl.float32)
    return tl.zeros(there.shape, tl.float32) + 8.0


@triton.jit(do_not_specialize=["tokens"])
def w4a16_few(
    x,  # int32 [tokens, 4 * words]: pairs of 16-bit floats
    packed,  # int32 [rows, words]
    scale,  # [rows, groups]
    zero,  # int32 [ceil(rows / 8), groups]
    out,  # [tokens, rows]; of splits float32 [splits, tokens, rows]
    tokens,
    rows,
    words,
    groups,
    each,  # words of a group
    span,  # words of a split, a multiple of WORDS
    ZEROS: tl.constexpr,
    KIND: tl.constexpr,
    SPLIT: tl.constexpr,
    WHOLE: tl.constexpr,  # a tile's words are all of one group: scales multiply the sums
    FULL: tl.constexpr,  # words is a multiple of WORDS
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
):
    """A program: all tokens, ROWS rows, the words of one split."""
    m = tl.arange(0, TOKENS)
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    w = tl.arange(0, WORDS)
    row = n.to(tl.int64)
    begin = tl.program_id(1) * span
    end = tl.minimum(begin + span, words)
    in_rows, in_tokens = n < rows, m < tokens
    at_x = x + m[:, None] * (4 * words) + (4 * (begin + w))[None, :]
    at_word = packed + row[None, :] * words + (begin + w)[:, None]
    sums = tl.zeros((TOKENS, ROWS), dtype=tl.float32)
    if WHOLE:  # the next group's are asked for before they are needed
        group = begin // each
        factor = tl.load(scale + row * groups + group, mask=in_rows, other=0.0)
        middle = middles(zero, row, group, groups, in_rows, ZEROS)
    for first in range(begin, end, WORDS):
        if FULL:
            word = tl.load(at_word, mask=in_rows[None, :], other=0)
        else:
            inside = in_rows[None, :] & (first + w < words)[:, None]
            word = tl.load(at_word, mask=inside, other=0)
        if WHOLE:
            group = tl.minimum((first + WORDS) // each, groups - 1)
            factor_after = tl.load(scale + row * groups + group, mask=in_rows, other=0.0)
            middle_after = middles(zero, row, group, groups, in_rows, ZEROS)
            center = middle[None, :]
        else:
            group = ((first + w) // each)[:, None]
            there = in_rows[None, :] & (first + w < words)[:, None]
            factors = tl.load(scale + row[None, :] * groups + group, mask=there, other=0.0)
            center = middles(zero, row[None, :], group, groups, there, ZEROS)
        part = tl.zeros((TOKENS, ROWS), dtype=tl.float32) if WHOLE else sums
        for pair in tl.static_range(4):
            if FULL:
                two = tl.load(at_x + pair, mask=in_tokens[:, None], other=0)
            else:
                inside_x = in_tokens[:, None] & (first + w < words)[None, :]
                two = tl.load(at_x + pair, mask=inside_x, other=0)
            low = two.to(tl.int16).to(KIND, bitcast=True)
            high = (two >> 16).to(tl.int16).to(KIND, bitcast=True)
            a = code_of(word, 2 * pair, center, KIND)
            b = code_of(word, 2 * pair + 1, center, KIND)
            if not WHOLE:
                a = a.to(tl.float32) * factors.to(tl.float32)
                b = b.to(tl.float32) * factors.to(tl.float32)
            part = tl.dot(low, a.to(KIND), part)
            part = tl.dot(high, b.to(KIND), part)
        if WHOLE:
            sums += part * factor.to(tl.float32)[None, :]
            factor, middle = factor_after, middle_after
        else:
            sums = part
        at_x += 4 * WORDS
        at_word += WORDS
    kept = in_tokens[:, None] & in_rows[None, :]
    at = m[:, None] * rows + n[None, :]
    if SPLIT:
        out += tl.program_id(1).to(tl.int64) * tokens * rows
        tl.store(out + at, sums, mask=kept)
    else:
        tl.store(out + at, sums.to(KIND), mask=kept)


@triton.jit
def join_splits(parts, out, count, splits, BLOCK: tl.constexpr):
    """out [count] = the sum of parts float32 [splits, count], in order, rounded once."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    sums = tl.zeros((BLOCK,), dtype=tl.float32)
    for split in range(splits):
        sums += tl.load(parts + split * count + at, mask=at < count, other=0.0)
    tl.store(out + at, sums.to(out.dtype.element_ty), mask=at < count)
