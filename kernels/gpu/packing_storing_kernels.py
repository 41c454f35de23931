"""The way back of `packing_kernels`: codes and parameters to blocks, every part in turn."""
# mypy: ignore-errors

import triton
import triton.language as tl

from qconvert.kernels.gpu.packing_kernels import blocks_of


@triton.jit
def stored_number(scales, mins, block, n, inside, NUMBERS: tl.constexpr):
    """Sub-scale n of each block as it is stored: int32, 0 to 255."""
    COUNT: tl.constexpr = NUMBERS[2]
    mine = inside & (n < COUNT)
    number = tl.load(scales + block * COUNT + n, mask=mine, other=0).to(tl.int32)
    if NUMBERS[1] == 2:
        mine = inside & (n >= COUNT)
        number |= tl.load(mins + block * COUNT + n - COUNT, mask=mine, other=0).to(tl.int32)
    return (number + NUMBERS[3]) & 255


@triton.jit
def store_six_bits(start, scales, mins, block, inside, NUMBERS: tl.constexpr):
    """`layouts.SIX_BIT_PAIRS`: four bytes of scales, four of minima, four of both."""
    j = tl.arange(0, 4)[None, None, None, :]
    inside = inside & (j >= 0)
    low = j * 0
    for kind in tl.static_range(2):
        early = stored_number(scales, mins, block, kind * 8 + j, inside, NUMBERS)
        late = stored_number(scales, mins, block, kind * 8 + 4 + j, inside, NUMBERS)
        byte = (early & 63) | (late >> 4 << 6)
        tl.store(start + kind * 4 + j, byte.to(tl.uint8), mask=inside)
        low = low | ((late & 15) << (kind * 4))
    tl.store(start + 8 + j, low.to(tl.uint8), mask=inside)


@triton.jit
def store_plane(start, codes, block, inside, COLS: tl.constexpr, AT: tl.constexpr,
                WIDTH: tl.constexpr, GROUP: tl.constexpr, SHIFT: tl.constexpr,
                FLIP: tl.constexpr):  # fmt: skip
    """One plane of the codes: tile [blocks, runs, 1, bytes of a run], a loop over the codes that
    share a byte; where those are neighbours, they are the last axis, and summed."""
    STRIDE: tl.constexpr = GROUP * WIDTH // 8
    run = tl.arange(0, COLS // GROUP)[None, :, None, None]
    if STRIDE == 1:
        k = tl.arange(0, GROUP)[None, None, None, :]
        code = tl.load(codes + block * COLS + run * GROUP + k, mask=inside, other=0).to(tl.int32)
        part = ((code >> SHIFT) & ((1 << WIDTH) - 1)) << (k * WIDTH)
        byte = tl.sum(part, axis=3, keep_dims=True) ^ FLIP
        tl.store(start + AT + run, byte.to(tl.uint8), mask=inside)
    else:
        i = tl.arange(0, STRIDE)[None, None, None, :]
        byte = run * 0 + i * 0 + FLIP
        for k in tl.static_range(8 // WIDTH):
            at = codes + block * COLS + run * GROUP + (k * STRIDE) + i
            code = tl.load(at, mask=inside, other=0).to(tl.int32)
            byte = byte ^ (((code >> SHIFT) & ((1 << WIDTH) - 1)) << (k * WIDTH))
        tl.store(start + AT + run * STRIDE + i, byte.to(tl.uint8), mask=inside)


@triton.jit
def store_numbers(start, scales, mins, block, inside, NUMBERS: tl.constexpr, AT: tl.constexpr,
                  WIDTH: tl.constexpr, GROUP: tl.constexpr, SHIFT: tl.constexpr):  # fmt: skip
    """One plane of the sub-scales: tile [blocks, runs, 1, bytes of a run]."""
    STRIDE: tl.constexpr = GROUP * WIDTH // 8
    run = tl.arange(0, NUMBERS[1] * NUMBERS[2] // GROUP)[None, :, None, None]
    i = tl.arange(0, STRIDE)[None, None, None, :]
    there = inside & (run + i >= 0)
    byte = run * 0 + i * 0
    for k in tl.static_range(8 // WIDTH):
        n = run * GROUP + k * STRIDE + i
        number = stored_number(scales, mins, block, n, there, NUMBERS)
        byte = byte | (((number >> SHIFT) & ((1 << WIDTH) - 1)) << (k * WIDTH))
    tl.store(start + AT + run * STRIDE + i, byte.to(tl.uint8), mask=there)


@triton.jit
def store_half(start, half, block, inside):
    bits = tl.load(half + block, mask=inside, other=0).to(tl.int32)
    tl.store(start, (bits & 255).to(tl.uint8), mask=inside)
    tl.store(start + 1, ((bits >> 8) & 255).to(tl.uint8), mask=inside)


@triton.jit(do_not_specialize=["blocks"])
def pack_blocks(packed, codes, half, other, scales, mins, blocks, PLANES: tl.constexpr,
                HALVES: tl.constexpr, NUMBERS: tl.constexpr, SUBS: tl.constexpr, COLS: tl.constexpr,
                NBYTES: tl.constexpr, BLOCKS: tl.constexpr):  # fmt: skip
    """packed [blocks, NBYTES], of what `unpack_blocks` gives; constants as there."""
    block, inside = blocks_of(blocks, BLOCKS)
    start = packed + block * NBYTES
    for p in tl.static_range(len(PLANES)):
        store_plane(start, codes, block, inside, COLS, PLANES[p][0], PLANES[p][1], PLANES[p][2],
                    PLANES[p][3], PLANES[p][4])  # fmt: skip
    store_half(start + HALVES[0], half, block, inside)
    if len(HALVES) == 2:
        store_half(start + HALVES[1], other, block, inside)
    if len(NUMBERS) > 0:
        AT: tl.constexpr = NUMBERS[0]
        if NUMBERS[5]:
            store_six_bits(start + AT, scales, mins, block, inside, NUMBERS)
        for p in tl.static_range(len(SUBS)):
            store_numbers(start, scales, mins, block, inside, NUMBERS, AT + SUBS[p][0], SUBS[p][1],
                          SUBS[p][2], SUBS[p][3])  # fmt: skip
