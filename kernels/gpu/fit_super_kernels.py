"""Triton kernels of `kernels.fit`: super-blocks, from the scales of their sub-blocks on.

A program takes ROWS rows of one super-block, and its SUBS sub-blocks one after the other; what it
finds of them it keeps in memory, where it also leaves it. Each sub-scale is tried one lower, as it
is and one higher, side by side; a fourth place repeats the last.
"""

# mypy: ignore-errors

import triton
import triton.language as tl

from qconvert.kernels.gpu.choosing_kernels import least_of, picked
from qconvert.kernels.gpu.rounding_kernels import larger, nearest, rounded, smaller
from qconvert.kernels.gpu.storing_kernels import half, inverse


@triton.jit
def _neighbours(now, low, high):
    step = (smaller(tl.arange(0, 4), 2) - 1).to(tl.float32)
    return larger(smaller(now[None, :] + step[:, None], high), low)


@triton.jit
def super_symmetric(
    x,  # float32 [cols, rows]
    weight,  # float32 [cols], or any pointer
    levels,
    middles,
    scales,  # float32 [groups, rows]: best scales; left as whole numbers
    d,  # float32 [super-blocks, rows], filled with what float16 holds
    rows,
    low,
    high,
    scale_low,
    scale_high,
    REFITS: tl.constexpr,
    SIZE: tl.constexpr,  # columns of a sub-block
    SUBS: tl.constexpr,
    BITS: tl.constexpr,
    WEIGHTED: tl.constexpr,
    ROWS: tl.constexpr,
):
    """x ~ d * scale * level."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    block = tl.program_id(1).to(tl.int64)
    inside = row < rows
    x += block * (SUBS * SIZE) * rows + row
    scales += block * SUBS * rows + row
    if WEIGHTED:
        weight += block * (SUBS * SIZE)
    largest = tl.zeros((ROWS,), dtype=tl.float32)
    extreme = tl.zeros((ROWS,), dtype=tl.float32)
    at = scales
    for _ in range(SUBS):
        s = tl.load(at, mask=inside, other=0.0)
        extreme = tl.where(tl.abs(s) > largest, s, extreme)
        largest = larger(tl.abs(s), largest)
        at += rows
    now_d = half(tl.div_rn(extreme, scale_low))
    per_d = inverse(now_d)
    at = scales
    for _ in range(SUBS):
        s = rounded(tl.load(at, mask=inside, other=0.0) * per_d, scale_low, scale_high)
        tl.store(at, s, mask=inside)
        at += rows
    for _ in range(REFITS):
        saa = tl.zeros((ROWS,), dtype=tl.float32)
        sxa = tl.zeros((ROWS,), dtype=tl.float32)
        at, to, w = x, scales, weight
        for _ in range(SUBS):
            tl.debug_barrier()  # what was stored may be read by another thread
            now = tl.load(to, mask=inside, other=0.0)
            s = _neighbours(now, scale_low, scale_high)
            scale = now_d[None, :] * s
            per = inverse(scale)
            sqq = tl.zeros(per.shape, dtype=tl.float32)
            sxq = tl.zeros(per.shape, dtype=tl.float32)
            for i in tl.range(0, SIZE, loop_unroll_factor=2):
                v = tl.load(at, mask=inside, other=0.0)[None, :]
                q = nearest(v * per, low, high, levels, middles, BITS)
                wq = q * tl.load(w + i) if WEIGHTED else q
                sqq += wq * q
                sxq += wq * v
                at += rows
            error = scale * (scale * sqq - 2.0 * sxq)
            _, better, first = least_of(error, tl.full((ROWS,), 3e38, dtype=tl.float32))
            best = picked(s, first, better, now)
            tl.store(to, best, mask=inside)
            saa += best * best * picked(sqq, first, better, 0.0)
            sxa += best * picked(sxq, first, better, 0.0)
            to += rows
            if WEIGHTED:
                w += SIZE
        fitted = half(tl.div_rn(sxa, larger(saa, 1e-30)))
        now_d = tl.where(tl.abs(fitted) > 0.0, fitted, now_d)
    tl.store(d + block * rows + row, now_d, mask=inside)


@triton.jit
def _affine_sums(
    x, weight, per, start, rows, inside, top, SIZE: tl.constexpr, WEIGHTED: tl.constexpr
):
    """sum w and sum w x of a sub-block, and sum w q, sum w q q and sum w q x for every scale."""
    sw = tl.zeros(start.shape, dtype=tl.float32)
    sx = tl.zeros(start.shape, dtype=tl.float32)
    sq = tl.zeros(per.shape, dtype=tl.float32)
    sqq = tl.zeros(per.shape, dtype=tl.float32)
    sxq = tl.zeros(per.shape, dtype=tl.float32)
    for i in tl.range(0, SIZE, loop_unroll_factor=2):
        one = tl.load(x, mask=inside, other=0.0)
        w = tl.load(weight + i) if WEIGHTED else 1.0
        sw += w
        sx += w * one
        v = one[None, :]
        q = rounded((v + start[None, :]) * per, 0.0, top)
        wq = q * w
        sq += wq
        sqq += wq * q
        sxq += wq * v
        x += rows
    return sw, sx, sq, sqq, sxq


@triton.jit
def super_affine(
    x,
    weight,
    scales,  # float32 [groups, rows]: best scales; left as whole numbers
    mins,  # float32 [groups, rows]: best offsets, not above 0; left as whole numbers
    d,  # float32 [super-blocks, rows], filled with what float16 holds
    dmin,
    rows,
    top,
    scale_top,
    REFITS: tl.constexpr,
    SIZE: tl.constexpr,
    SUBS: tl.constexpr,
    WEIGHTED: tl.constexpr,
    ROWS: tl.constexpr,
):
    """x ~ d * scale * code - dmin * min."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    block = tl.program_id(1).to(tl.int64)
    inside = row < rows
    x += block * (SUBS * SIZE) * rows + row
    scales += block * SUBS * rows + row
    mins += block * SUBS * rows + row
    if WEIGHTED:
        weight += block * (SUBS * SIZE)
    now_d = tl.zeros((ROWS,), dtype=tl.float32)
    now_dmin = tl.zeros((ROWS,), dtype=tl.float32)
    at, under = scales, mins
    for _ in range(SUBS):
        now_d = larger(now_d, tl.load(at, mask=inside, other=0.0))
        now_dmin = larger(now_dmin, 0.0 - tl.load(under, mask=inside, other=0.0))
        at += rows
        under += rows
    now_d, now_dmin = half(tl.div_rn(now_d, scale_top)), half(tl.div_rn(now_dmin, scale_top))
    per_d, per_dmin = inverse(now_d), inverse(now_dmin)
    at, under = scales, mins
    for _ in range(SUBS):  # none is negative
        s = tl.load(at, mask=inside, other=0.0) * per_d
        m = (0.0 - tl.load(under, mask=inside, other=0.0)) * per_dmin
        tl.store(at, rounded(s, 0.0, scale_top), mask=inside)
        tl.store(under, rounded(m, 0.0, scale_top), mask=inside)
        at += rows
        under += rows
    for _ in range(REFITS):
        saa = tl.zeros((ROWS,), dtype=tl.float32)
        sab = tl.zeros((ROWS,), dtype=tl.float32)
        sbb = tl.zeros((ROWS,), dtype=tl.float32)
        sxa = tl.zeros((ROWS,), dtype=tl.float32)
        sxb = tl.zeros((ROWS,), dtype=tl.float32)
        per_min = inverse(now_dmin)[None, :]
        at, to, under, w = x, scales, mins, weight
        for _ in range(SUBS):
            tl.debug_barrier()  # what was stored may be read by another thread
            now = tl.load(to, mask=inside, other=0.0)
            least = tl.load(under, mask=inside, other=0.0)
            s = _neighbours(now, 0.0, scale_top)
            scale = now_d[None, :] * s
            sw, sx, sq, sqq, sxq = _affine_sums(
                at, w, inverse(scale), now_dmin * least, rows, inside, top, SIZE, WEIGHTED
            )
            sw2, sx2 = sw[None, :], sx[None, :]
            m = rounded(tl.div_rn(scale * sq - sx2, sw2) * per_min, 0.0, scale_top)
            offset = now_dmin[None, :] * m
            error = scale * (scale * sqq - 2.0 * sxq - 2.0 * offset * sq) + offset * (
                2.0 * sx2 + offset * sw2
            )
            _, better, first = least_of(error, tl.full((ROWS,), 3e38, dtype=tl.float32))
            best = picked(s, first, better, now)
            best_m = picked(m, first, better, least)
            tl.store(to, best, mask=inside)
            tl.store(under, best_m, mask=inside)
            saa += best * best * picked(sqq, first, better, 0.0)
            sab += best * best_m * picked(sq, first, better, 0.0)
            sbb += best_m * best_m * sw
            sxa += best * picked(sxq, first, better, 0.0)
            sxb += best_m * sx
            at += SIZE * rows
            to += rows
            under += rows
            if WEIGHTED:
                w += SIZE
        det = saa * sbb - sab * sab
        solvable = det > 1e-30
        det = tl.where(solvable, det, 1.0)
        alone = tl.div_rn(sxa, larger(saa, 1e-30))
        new_d = tl.where(solvable, tl.div_rn(sxa * sbb - sxb * sab, det), alone)
        new_dmin = tl.where(solvable, tl.div_rn(sxa * sab - sxb * saa, det), 0.0)
        new_d = half(tl.where(new_dmin > 0.0, new_d, alone))
        keep = new_d > 0.0
        now_d = tl.where(keep, new_d, now_d)
        now_dmin = tl.where(keep, half(larger(new_dmin, 0.0)), now_dmin)
    tl.store(d + block * rows + row, now_d, mask=inside)
    tl.store(dmin + block * rows + row, now_dmin, mask=inside)
