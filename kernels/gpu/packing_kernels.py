"""Blocks of `layouts.BlockLayout` in Triton: a program takes BLOCKS of them, every part in turn.

Codes go through a tile [blocks, runs, groups, size] of contiguous bytes. Columns c of a block are
cut so that one shift holds for all of a tile: c = run * SPAN + turn * UNIT + group * SIZE + i, with
a static loop over turns. Constants that are tuples: `PLANES` of (first byte, width, group, shift,
flip), `HALVES` of first bytes, `NUMBERS` of (first byte, names, count, bias, signed, in pairs),
empty where a block has no sub-scales, and `SUBS` of their planes (byte after the first, width,
group, shift). Functions get numbers of these or a whole constant: before Triton 3.9 a part of a
tuple that is a tuple itself cannot be handed on.
"""
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def blocks_of(blocks, BLOCKS: tl.constexpr):
    """The blocks of this program, [BLOCKS, 1, 1, 1], 64 bits wide, and which of them there are."""
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)[:, None, None, None]
    return block, block < blocks


@triton.jit
def byte_of(n, WIDTH: tl.constexpr, GROUP: tl.constexpr):
    """Of a plane's bytes, the one that code n shares."""
    return n // GROUP * (GROUP * WIDTH // 8) + n % GROUP % (GROUP * WIDTH // 8)


@triton.jit
def lift_of(n, WIDTH: tl.constexpr, GROUP: tl.constexpr):
    """The bit of that byte where code n begins."""
    return n % GROUP // (GROUP * WIDTH // 8) * WIDTH


@triton.jit
def part_of(raw, lift, WIDTH: tl.constexpr, SHIFT: tl.constexpr):
    """`WIDTH` bits from bit `lift` up, at bit `SHIFT`."""
    return ((raw >> lift) & ((1 << WIDTH) - 1)) << SHIFT


@triton.jit
def load_half(start, inside):
    """A float16 as it lies, in the low bits of int32; bytes, since a block may begin anywhere."""
    low = tl.load(start, mask=inside, other=0).to(tl.int32)
    return low | tl.load(start + 1, mask=inside, other=0).to(tl.int32) << 8


@triton.jit
def six_bits(start, n, inside):
    """Number n of `layouts.SIX_BIT_PAIRS`: eight scales, then eight minima."""
    kind, low = n // 8, n % 4
    first = tl.load(start + kind * 4 + low, mask=inside, other=0).to(tl.int32)
    third = tl.load(start + 8 + low, mask=inside, other=0).to(tl.int32)
    late = ((third >> (kind * 4)) & 15) | (first >> 6 << 4)
    return tl.where(n % 8 < 4, first & 63, late)


@triton.jit
def load_number(start, n, inside, NUMBERS: tl.constexpr, SUBS: tl.constexpr):
    """Sub-scale n of the blocks that begin at `start`, as int32."""
    AT: tl.constexpr = NUMBERS[0]
    if NUMBERS[5]:
        stored = six_bits(start + AT, n, inside)
    else:
        stored = tl.zeros(inside.shape, tl.int32)
        for p in tl.static_range(len(SUBS)):
            at = start + (AT + SUBS[p][0]) + byte_of(n, SUBS[p][1], SUBS[p][2])
            raw = tl.load(at, mask=inside, other=0).to(tl.int32)
            lift = lift_of(n, SUBS[p][1], SUBS[p][2])
            stored |= part_of(raw, lift, SUBS[p][1], SUBS[p][3])
    stored = (stored - NUMBERS[3]) & 255
    if NUMBERS[4]:
        stored = (stored ^ 128) - 128
    return stored


@triton.jit
def load_plane(start, c, i, inside, AT: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr,
               FLIP: tl.constexpr):  # fmt: skip
    """What the codes of columns c + i need of a plane, as int32: a byte of each, or, of a plane of
    neighbouring bits, the four bytes of the block in one word."""
    if WIDTH * GROUP == 8:
        word = tl.load(start + AT, mask=inside, other=0).to(tl.int32)
        for k in tl.static_range(1, 4):
            word |= tl.load(start + AT + k, mask=inside, other=0).to(tl.int32) << (8 * k)
        return word
    else:
        raw = tl.load(start + AT + byte_of(c, WIDTH, GROUP) + i, mask=inside, other=0)
        return raw.to(tl.int32) ^ FLIP


@triton.jit
def codes_of(raws, c, i, PLANES: tl.constexpr):
    """int32 codes of columns c + i, from what `load_plane` gave of each plane."""
    code = (c + i) * 0
    for p in tl.static_range(len(PLANES)):
        if PLANES[p][1] * PLANES[p][2] == 8:
            code = code | part_of(raws[p], (c + i) * PLANES[p][1], PLANES[p][1], PLANES[p][3])
        else:
            lift = lift_of(c, PLANES[p][1], PLANES[p][2])
            code = code | part_of(raws[p], lift, PLANES[p][1], PLANES[p][3])
    return code


@triton.jit
def columns(COLS: tl.constexpr, SPAN: tl.constexpr, UNIT: tl.constexpr, SIZE: tl.constexpr):
    """First columns of the groups of turn 0, [1, runs, groups, 1], and i, [1, 1, 1, size]."""
    run = tl.arange(0, COLS // SPAN)[None, :, None, None] * SPAN
    group = tl.arange(0, UNIT // SIZE)[None, None, :, None] * SIZE
    return run + group, tl.arange(0, SIZE)[None, None, None, :]


@triton.jit
def level_of(code, LOWEST: tl.constexpr, TABLE: tl.constexpr):
    """Float32 levels: whole numbers from LOWEST up, or those of TABLE, sixteen signed bytes in two
    words of eight: the byte goes to the top of its word and comes down with its sign."""
    if TABLE is None:
        return (code + LOWEST).to(tl.float32)
    else:
        low = tl.full(code.shape, TABLE[0], tl.int64)
        word = tl.where(code < 8, low, tl.full(code.shape, TABLE[1], tl.int64))
        return (word << ((7 - (code & 7)) * 8).to(tl.int64) >> 56).to(tl.int32).to(tl.float32)


@triton.jit
def line_of(half, start, n, inside, WHOLE: tl.constexpr, NUMBERS: tl.constexpr,
            SUBS: tl.constexpr):  # fmt: skip
    """float32 of each group n: the block's half (its bits), or its product with the number n."""
    line = half.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    if WHOLE:
        return line * load_number(start, n, inside & (n >= 0), NUMBERS, SUBS).to(tl.float32)
    else:
        return line


@triton.jit(do_not_specialize=["blocks"])
def dequantize_blocks(packed, out, blocks, PLANES: tl.constexpr, HALVES: tl.constexpr,
                      NUMBERS: tl.constexpr, SUBS: tl.constexpr, SCALE: tl.constexpr,
                      OFFSET: tl.constexpr, LOWEST: tl.constexpr, TABLE: tl.constexpr,
                      COLS: tl.constexpr, GROUP: tl.constexpr, NBYTES: tl.constexpr,
                      SPAN: tl.constexpr, UNIT: tl.constexpr, LONG: tl.constexpr,
                      SIZE: tl.constexpr, BLOCKS: tl.constexpr):  # fmt: skip
    """out [blocks, COLS]: scale * level + offset, each operation rounded to float32, then once to
    the type of `out`. SCALE, OFFSET: (first byte of the half, first number or -1, minus)."""
    block, inside = blocks_of(blocks, BLOCKS)
    start = packed + block * NBYTES
    first, i = columns(COLS, SPAN, UNIT, SIZE)
    d = load_half(start + SCALE[0], inside)
    if OFFSET is not None:
        m = load_half(start + OFFSET[0], inside)
    for q in tl.static_range(LONG // UNIT):
        raws = ()
        for p in tl.static_range(len(PLANES)):
            raws += (load_plane(start, first + q * UNIT, i, inside, PLANES[p][0], PLANES[p][1],
                                PLANES[p][2], PLANES[p][4]),)  # fmt: skip
        for k in tl.static_range(SPAN // LONG):
            c = first + (k * LONG + q * UNIT)
            value = level_of(codes_of(raws, c, i, PLANES), LOWEST, TABLE)
            value *= line_of(d, start, SCALE[1] + c // GROUP, inside, SCALE[1] >= 0, NUMBERS, SUBS)
            if OFFSET is not None:
                n = OFFSET[1] + c // GROUP
                offset = line_of(m, start, n, inside, OFFSET[1] >= 0, NUMBERS, SUBS)
                value = value - offset if OFFSET[2] else value + offset
            tl.store(out + block * COLS + c + i, value.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["blocks"])
def unpack_blocks(packed, codes, half, other, scales, mins, blocks, PLANES: tl.constexpr,
                  HALVES: tl.constexpr, NUMBERS: tl.constexpr, SUBS: tl.constexpr,
                  COLS: tl.constexpr, NBYTES: tl.constexpr, SPAN: tl.constexpr, UNIT: tl.constexpr,
                  LONG: tl.constexpr, SIZE: tl.constexpr, BLOCKS: tl.constexpr):  # fmt: skip
    """codes [blocks, COLS]; half and other, int16 [blocks]; scales and mins, uint8 [blocks, count],
    as far as a block has them."""
    block, inside = blocks_of(blocks, BLOCKS)
    start = packed + block * NBYTES
    first, i = columns(COLS, SPAN, UNIT, SIZE)
    for q in tl.static_range(LONG // UNIT):
        raws = ()
        for p in tl.static_range(len(PLANES)):
            raws += (load_plane(start, first + q * UNIT, i, inside, PLANES[p][0], PLANES[p][1],
                                PLANES[p][2], PLANES[p][4]),)  # fmt: skip
        for k in tl.static_range(SPAN // LONG):
            c = first + (k * LONG + q * UNIT)
            code = codes_of(raws, c, i, PLANES)
            tl.store(codes + block * COLS + c + i, code.to(tl.uint8), mask=inside)
    tl.store(half + block, load_half(start + HALVES[0], inside).to(tl.int16), mask=inside)
    if len(HALVES) == 2:
        tl.store(other + block, load_half(start + HALVES[1], inside).to(tl.int16), mask=inside)
    if len(NUMBERS) > 0:
        COUNT: tl.constexpr = NUMBERS[2]
        n = tl.arange(0, COUNT)[None, None, None, :]
        there = inside & (n >= 0)
        number = load_number(start, n, there, NUMBERS, SUBS)
        tl.store(scales + block * COUNT + n, number.to(tl.uint8), mask=there)
        if NUMBERS[1] == 2:
            number = load_number(start, n + COUNT, there, NUMBERS, SUBS)
            tl.store(mins + block * COUNT + n, number.to(tl.uint8), mask=there)
