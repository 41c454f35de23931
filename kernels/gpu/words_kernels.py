"""Words in Triton: a program takes a tile of words, [units, words] of a layout, and their codes.

Neighbours along a row share a word: tile [rows, words, codes of a word], last axis contiguous.
Neighbours along a column: tile [words, codes of a word, cols]. `words` u, v count as the layout has
them before a transposition.
"""
# mypy: ignore-errors

import triton
import triton.language as tl

from qconvert.kernels.gpu.small_float_kernels import bfloat16_bits, float_of_bits, power_of_byte


@triton.jit
def axes(U, V, ROWS: tl.constexpr, BU: tl.constexpr, BV: tl.constexpr, P: tl.constexpr):
    """Of this program's tile: u, v of its words and the place of a code in one, each along an axis
    of three; u is 64 bits wide."""
    u = tl.program_id(0).to(tl.int64) * BU + tl.arange(0, BU)
    v = tl.program_id(1) * BV + tl.arange(0, BV)
    p = tl.arange(0, P)
    if ROWS:
        return u[:, None, None], v[None, None, :], p[None, :, None]
    else:
        return u[:, None, None], v[None, :, None], p[None, None, :]


@triton.jit
def shifts_of(p, BITS: tl.constexpr, PLACES: tl.constexpr):
    """Where the field of code p begins. PLACES: four bits for each code, or 0 for their order."""
    if PLACES == 0:
        return p * BITS
    else:
        return ((tl.full(p.shape, PLACES, tl.int64) >> (p * 4)) & 15).to(tl.int32) * BITS


@triton.jit
def field_of(code, ADDED: tl.constexpr, NEGATED: tl.constexpr, FLOAT: tl.constexpr,
             MAGNITUDES: tl.constexpr, SIGN: tl.constexpr, MIDDLE: tl.constexpr,
             BITS: tl.constexpr):  # fmt: skip
    """int32 codes -> fields; `word_layouts.Coding.fields`."""
    if FLOAT:
        below = code < MIDDLE
        magnitude = tl.where(below, MAGNITUDES - 1 - code, code - MIDDLE)
        return (magnitude & (SIGN - 1)) | tl.where(below, SIGN, 0)
    elif NEGATED:
        return (ADDED - code) & ((1 << BITS) - 1)
    else:
        return (code + ADDED) & ((1 << BITS) - 1)


@triton.jit
def code_of(field, ADDED: tl.constexpr, NEGATED: tl.constexpr, FLOAT: tl.constexpr,
            MAGNITUDES: tl.constexpr, SIGN: tl.constexpr, MIDDLE: tl.constexpr,
            BITS: tl.constexpr):  # fmt: skip
    """The inverse; 255 for what is no number."""
    if FLOAT:
        magnitude = field & (SIGN - 1)
        below = (field & SIGN) != 0
        code = tl.where(below, MAGNITUDES - 1 - magnitude, MIDDLE + magnitude)
        if MAGNITUDES < SIGN:
            code = tl.where(magnitude < MAGNITUDES, code, 255)
        return code
    elif NEGATED:
        return (ADDED - field) & ((1 << BITS) - 1)
    else:
        return (field - ADDED) & ((1 << BITS) - 1)


@triton.jit
def pack_kernel(codes, words, rows, cols, U, V, ROWS: tl.constexpr, TURNED: tl.constexpr,
                BITS: tl.constexpr, PER: tl.constexpr, PLACES: tl.constexpr, ADDED: tl.constexpr,
                NEGATED: tl.constexpr, FLOAT: tl.constexpr, MAGNITUDES: tl.constexpr,
                SIGN: tl.constexpr, MIDDLE: tl.constexpr, BU: tl.constexpr, BV: tl.constexpr,
                P: tl.constexpr):  # fmt: skip
    """codes [rows, cols] uint8 -> words [U, V], or [V, U] where TURNED."""
    u, v, p = axes(U, V, ROWS, BU, BV, P)
    if ROWS:
        at = (u * PER + p) * cols + v
        inside = (u * PER + p < rows) & (v < cols) & (p < PER)
    else:
        at = u * cols + (v * PER + p)
        inside = (u < rows) & (v * PER + p < cols) & (p < PER)
    code = tl.load(codes + at, mask=inside, other=0).to(tl.int32)
    field = field_of(code, ADDED, NEGATED, FLOAT, MAGNITUDES, SIGN, MIDDLE, BITS)
    field = tl.where(inside, field, 0) << shifts_of(p, BITS, PLACES)
    word = tl.sum(field, axis=1 if ROWS else 2, keep_dims=True)
    to = v.to(tl.int64) * U + u if TURNED else u * V + v
    word = word.to(tl.int32).to(words.dtype.element_ty)
    tl.store(words + to, word, mask=(u < U) & (v < V))


@triton.jit
def unpack_kernel(words, codes, rows, cols, U, V, ROWS: tl.constexpr, TURNED: tl.constexpr,
                  BITS: tl.constexpr, PER: tl.constexpr, PLACES: tl.constexpr, ADDED: tl.constexpr,
                  NEGATED: tl.constexpr, FLOAT: tl.constexpr, MAGNITUDES: tl.constexpr,
                  SIGN: tl.constexpr, MIDDLE: tl.constexpr, BU: tl.constexpr, BV: tl.constexpr,
                  P: tl.constexpr):  # fmt: skip
    """The inverse of `pack_kernel`."""
    u, v, p = axes(U, V, ROWS, BU, BV, P)
    at = v.to(tl.int64) * U + u if TURNED else u * V + v
    word = tl.load(words + at, mask=(u < U) & (v < V), other=0).to(tl.int32)
    field = (word >> shifts_of(p, BITS, PLACES)) & ((1 << BITS) - 1)
    code = code_of(field, ADDED, NEGATED, FLOAT, MAGNITUDES, SIGN, MIDDLE, BITS).to(tl.uint8)
    if ROWS:
        to = (u * PER + p) * cols + v
        inside = (u * PER + p < rows) & (v < cols) & (p < PER)
    else:
        to = u * cols + (v * PER + p)
        inside = (u < rows) & (v * PER + p < cols) & (p < PER)
    tl.store(codes + to, code, mask=inside)


@triton.jit
def scale_at(values, zero, row, group, rows, groups, s_row, s_group, z_row, z_group, whole,
             TOGETHER: tl.constexpr, KIND: tl.constexpr, WHOLE: tl.constexpr, ZERO: tl.constexpr,
             NEGATED: tl.constexpr):  # fmt: skip
    """(scale, scale * zero) float32 of `group` of `row`; KIND 0: floats, 1: e4m3, 2: E8M0."""
    inside = (row < rows) & (group < groups)
    block = row // TOGETHER if TOGETHER > 0 else row * 0
    scale = tl.load(values + block * s_row + group * s_group, mask=inside, other=0)
    if KIND == 1:
        scale = float_of_bits(scale.to(tl.int32), 3, 7, 127, 128, 1)
    elif KIND == 2:
        scale = power_of_byte(scale.to(tl.int32))
    else:
        scale = scale.to(tl.float32)
    if WHOLE:
        scale = scale * tl.load(whole)
    if NEGATED:
        scale = 0.0 - scale
    offset = scale
    if ZERO:
        many = tl.load(zero + row * z_row + group * z_group, mask=inside, other=0)
        offset = scale * many.to(tl.float32)
    return scale, offset


@triton.jit
def dequantize_kernel(words, values, zero, whole, out, rows, cols, U, V, groups, s_row, s_group,
                      z_row, z_group, ROWS: tl.constexpr, TURNED: tl.constexpr, BITS: tl.constexpr,
                      PER: tl.constexpr, PLACES: tl.constexpr, ADDED: tl.constexpr,
                      NEGATED: tl.constexpr, FLOAT: tl.constexpr, MAGNITUDES: tl.constexpr,
                      SIGN: tl.constexpr, MIDDLE: tl.constexpr, LOWEST: tl.constexpr,
                      MANTISSA: tl.constexpr, BIAS: tl.constexpr, ZEROS: tl.constexpr,
                      GROUP: tl.constexpr, TOGETHER: tl.constexpr, KIND: tl.constexpr,
                      WHOLE: tl.constexpr, ZERO: tl.constexpr, BFLOAT: tl.constexpr,
                      BU: tl.constexpr, BV: tl.constexpr, P: tl.constexpr):  # fmt: skip
    """level * scale - scale * zero, rounded to the type of `out` [rows, cols]; BFLOAT: to the bits
    of bfloat16. GROUP 0: a row is one. A scale is loaded once for a word, or a tile, if it can."""
    u, v, p = axes(U, V, ROWS, BU, BV, P)
    at = v.to(tl.int64) * U + u if TURNED else u * V + v
    word = tl.load(words + at, mask=(u < U) & (v < V), other=0).to(tl.int32)
    field = (word >> shifts_of(p, BITS, PLACES)) & ((1 << BITS) - 1)
    if FLOAT:
        level = float_of_bits(field, MANTISSA, BIAS, MAGNITUDES, SIGN, ZEROS)
    else:
        code = code_of(field, ADDED, NEGATED, FLOAT, MAGNITUDES, SIGN, MIDDLE, BITS)
        level = (code + LOWEST).to(tl.float32)
    if ROWS:
        row, col = u * PER + p, v
        inside = (row < rows) & (col < cols) & (p < PER)
        if GROUP == 0:
            first = tl.zeros((1, 1, 1), tl.int32)
        elif GROUP % BV == 0:  # of the tile
            first = tl.zeros((1, 1, 1), tl.int32) + tl.program_id(1) * BV
        else:
            first = col
    else:
        row, col = u, v * PER + p
        inside = (row < rows) & (col < cols) & (p < PER)
        if GROUP == 0:
            first = tl.zeros((1, 1, 1), tl.int32)
        elif GROUP % (BV * PER) == 0:  # of the tile
            first = tl.zeros((1, 1, 1), tl.int32) + tl.program_id(1) * BV * PER
        elif GROUP % PER == 0:  # of a word
            first = v * PER
        else:
            first = col
    group = first // GROUP if GROUP > 0 else first
    scale, offset = scale_at(values, zero, row, group, rows, groups, s_row, s_group, z_row,
                             z_group, whole, TOGETHER, KIND, WHOLE, ZERO, NEGATED)  # fmt: skip
    value = level * scale
    if ZERO:
        value = value - offset
    if BFLOAT:
        tl.store(out + (row * cols + col), bfloat16_bits(value), mask=inside)
    else:
        tl.store(out + (row * cols + col), value.to(out.dtype.element_ty), mask=inside)
