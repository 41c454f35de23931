"""Triton kernel of `kernels.products.w4a16` for many tokens: tiles of the output.

As for few tokens, one product takes one of the eight codes of each word of a tile. The weights are
its left factor, which is taken apart in registers; the activations lie ready in shared memory.
"""

# mypy: ignore-errors

import triton
import triton.language as tl

from qconvert.kernels.gpu.products_kernels import code_of, middles


@triton.jit(do_not_specialize=["tokens"])
def w4a16_many(
    x,  # [tokens, 8, words]: the columns of each place of a word together
    packed,  # int32 [rows, words]
    scale,  # [rows, groups]
    zero,  # int32 [ceil(rows / 8), groups]
    out,  # [tokens, rows]
    tokens,
    rows,
    words,
    groups,
    each,  # words of a group
    ZEROS: tl.constexpr,
    WHOLE: tl.constexpr,  # a tile's words are all of one group: scales multiply the sums
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
    AREA: tl.constexpr,  # tiles of tokens that share weights in the cache
):
    """A program: ROWS rows for TOKENS tokens, over all columns in order."""
    down, across = tl.cdiv(tokens, TOKENS), tl.cdiv(rows, ROWS)
    band = tl.program_id(0) // (AREA * across)
    high = tl.minimum(down - band * AREA, AREA)
    within = tl.program_id(0) % (AREA * across)
    m = (band * AREA + within % high) * TOKENS + tl.arange(0, TOKENS)
    n = (within // high) * ROWS + tl.arange(0, ROWS)
    w = tl.arange(0, WORDS)
    row = n.to(tl.int64)
    in_rows, in_tokens = n < rows, m < tokens
    at_x = x + m.to(tl.int64)[None, :] * (8 * words) + w[:, None]
    at_word = packed + row[:, None] * words + w[None, :]
    sums = tl.zeros((ROWS, TOKENS), dtype=tl.float32)
    for first in range(0, words, WORDS):
        there = in_rows[:, None] & (first + w < words)[None, :]
        there_x = in_tokens[None, :] & (first + w < words)[:, None]
        word = tl.load(at_word, mask=there, other=0)
        if WHOLE:
            group = first // each
            factor = tl.load(scale + row * groups + group, mask=in_rows, other=0.0)
            middle = middles(zero, row, group, groups, in_rows, ZEROS)[:, None]
            part = tl.zeros((ROWS, TOKENS), dtype=tl.float32)
        else:
            group = ((first + w) // each)[None, :]
            factors = tl.load(scale + row[:, None] * groups + group, mask=there, other=0.0)
            middle = middles(zero, row[:, None], group, groups, there, ZEROS)
            part = sums
        for place in tl.static_range(8):
            taken = tl.load(at_x + place * words, mask=there_x, other=0.0)
            code = code_of(word, place, middle, x.dtype.element_ty)
            if not WHOLE:
                code = (code.to(tl.float32) * factors.to(tl.float32)).to(code.dtype)
            part = tl.dot(code, taken, part)
        if WHOLE:
            sums += part * factor.to(tl.float32)[:, None]
        else:
            sums = part
        at_x += WORDS
        at_word += WORDS
    at = out + m.to(tl.int64)[:, None] * rows + n[None, :]
    kept = in_tokens[:, None] & in_rows[None, :]
    tl.store(at, tl.trans(sums).to(out.dtype.element_ty), mask=kept)
