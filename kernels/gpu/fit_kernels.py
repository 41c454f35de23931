"""Triton kernels of `kernels.fit`: the best scale (and offset) of every group, before rounding.

x has its columns first, [cols, rows]; a lane is a row, so loads coalesce and every sum runs over
the columns of the group in order, as in the plain body. A program takes ROWS rows of one group,
and tries TOGETHER starts side by side each time it walks over the columns; `starts` is a multiple
of that, filled up with copies of the first, which are never better than it.
"""

# mypy: ignore-errors

import triton
import triton.language as tl

from qconvert.kernels.gpu.choosing_kernels import best_of, picked
from qconvert.kernels.gpu.rounding_kernels import larger, nearest, rounded, smaller
from qconvert.kernels.gpu.storing_kernels import inverse


@triton.jit
def _symmetric_sums(
    x, weight, per, rows, size, inside, low, high, levels, middles,
    BITS: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """sum w q x and sum w q q for every start of `per` [starts, rows]."""
    sxq = tl.zeros(per.shape, dtype=tl.float32)
    sqq = tl.zeros(per.shape, dtype=tl.float32)
    for i in tl.range(0, size, loop_unroll_factor=2):
        v = tl.load(x, mask=inside, other=0.0)[None, :]
        q = nearest(v * per, low, high, levels, middles, BITS)
        wq = q * tl.load(weight + i) if WEIGHTED else q
        sxq += wq * v
        sqq += wq * q
        x += rows
    return sxq, sqq


@triton.jit
def symmetric(
    x,  # float32 [cols, rows]
    weight,  # float32 [cols], or any pointer
    anchors,  # float32 [starts]
    levels,  # float32 [2**BITS], or any pointer
    middles,  # float32 [2**BITS - 1], or any pointer
    scale,  # float32 [groups, rows], filled
    rows,
    size,
    starts,
    low,
    high,
    REFITS: tl.constexpr,
    BITS: tl.constexpr,  # of codes of a table; 0: whole levels
    WEIGHTED: tl.constexpr,
    ROWS: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """x ~ scale * level: the largest element onto each anchor, then re-fits."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    group = tl.program_id(1).to(tl.int64)
    inside = row < rows
    x += group * size * rows + row
    if WEIGHTED:
        weight += group * size
    largest = tl.zeros((ROWS,), dtype=tl.float32)
    extreme = tl.zeros((ROWS,), dtype=tl.float32)
    at = x
    for _ in tl.range(0, size, loop_unroll_factor=4):
        v = tl.load(at, mask=inside, other=0.0)
        a = tl.abs(v)
        extreme = tl.where(a > largest, v, extreme)
        largest = larger(a, largest)
        at += rows
    unit = inverse(extreme)
    best = tl.zeros((ROWS,), dtype=tl.float32)
    best_d = tl.zeros((ROWS,), dtype=tl.float32)
    for k in range(0, starts, TOGETHER):
        anchor = tl.load(anchors + k + tl.arange(0, TOGETHER))
        per = anchor[:, None] * unit[None, :]
        sxq, sqq = _symmetric_sums(
            x, weight, per, rows, size, inside, low, high, levels, middles, BITS, WEIGHTED
        )
        sqq = larger(sqq, 1e-30)
        best, better, first = best_of(tl.div_rn(sxq * sxq, sqq), best)
        best_d = picked(tl.div_rn(sxq, sqq), first, better, best_d)
    for _ in range(REFITS):
        per = inverse(best_d)[None, :]
        sxq, sqq = _symmetric_sums(
            x, weight, per, rows, size, inside, low, high, levels, middles, BITS, WEIGHTED
        )
        sqq = larger(sqq, 1e-30)
        best, better, first = best_of(tl.div_rn(sxq * sxq, sqq), best)
        best_d = picked(tl.div_rn(sxq, sqq), first, better, best_d)
    tl.store(scale + group * rows + row, best_d, mask=inside)


@triton.jit
def _affine_sums(
    x, weight, per, start, rows, size, inside, top, WEIGHTED: tl.constexpr
):  # fmt: skip
    """sum w q, sum w q q and sum w q x for every start."""
    sq = tl.zeros(per.shape, dtype=tl.float32)
    sqq = tl.zeros(per.shape, dtype=tl.float32)
    sxq = tl.zeros(per.shape, dtype=tl.float32)
    for i in tl.range(0, size, loop_unroll_factor=2):
        v = tl.load(x, mask=inside, other=0.0)[None, :]
        q = rounded((v - start) * per, 0.0, top)
        wq = q * tl.load(weight + i) if WEIGHTED else q
        sq += wq
        sqq += wq * q
        sxq += wq * v
        x += rows
    return sq, sqq, sxq


@triton.jit
def _affine_step(best, best_d, best_m, sw, sx, sq, sqq, sxq, SIGNED: tl.constexpr):
    """The best so far and what the sums of new starts lead to, whichever leaves less error."""
    det = sw * sqq - sq * sq
    solvable = det > 1e-30
    det = tl.where(solvable, det, 1.0)
    d = tl.div_rn(sw * sxq - sx * sq, det)
    m = tl.div_rn(sqq * sx - sq * sxq, det)
    if not SIGNED:
        above = m > 0.0
        d = tl.where(above, tl.div_rn(sxq, larger(sqq, 1e-30)), d)
        m = tl.where(above, 0.0, m)
    gain = 2.0 * (d * sxq + m * sx) - (d * d * sqq + 2.0 * (d * m) * sq + m * m * sw)
    best, better, first = best_of(tl.where(solvable, gain, -3e38), best)
    return best, picked(d, first, better, best_d), picked(m, first, better, best_m)


@triton.jit
def affine(
    x,
    weight,
    tops,  # float32 [starts]
    shifts,  # float32 [starts]
    scale,  # float32 [groups, rows], filled
    offset,  # float32 [groups, rows], filled
    rows,
    size,
    starts,
    top,
    REFITS: tl.constexpr,
    SIGNED: tl.constexpr,  # whether an offset may be above 0
    WEIGHTED: tl.constexpr,
    ROWS: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """x ~ scale * code + offset, the scale not negative."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    group = tl.program_id(1).to(tl.int64)
    inside = row < rows
    x += group * size * rows + row
    if WEIGHTED:
        weight += group * size
    low = tl.load(x, mask=inside, other=0.0)
    high = low
    sw = tl.zeros((ROWS,), dtype=tl.float32)
    sx = tl.zeros((ROWS,), dtype=tl.float32)
    at = x
    for i in tl.range(0, size, loop_unroll_factor=4):
        v = tl.load(at, mask=inside, other=0.0)
        low = smaller(low, v)
        high = larger(high, v)
        w = tl.load(weight + i) if WEIGHTED else 1.0
        sw += w
        sx += w * v
        at += rows
    if not SIGNED:
        low = smaller(low, 0.0)
        high = larger(high, 0.0)
    alive = high - low > 1e-30
    span = tl.where(alive, high - low, 1.0)
    best = tl.full((ROWS,), -3e38, dtype=tl.float32)
    best_d = tl.zeros((ROWS,), dtype=tl.float32)
    best_m = low
    for k in range(0, starts, TOGETHER):
        this = k + tl.arange(0, TOGETHER)
        per = tl.div_rn(tl.load(tops + this)[:, None], span[None, :])
        start = low[None, :] + tl.div_rn(tl.load(shifts + this)[:, None], per)
        sq, sqq, sxq = _affine_sums(x, weight, per, start, rows, size, inside, top, WEIGHTED)
        best, best_d, best_m = _affine_step(
            best, best_d, best_m, sw[None, :], sx[None, :], sq, sqq, sxq, SIGNED
        )
    for _ in range(REFITS):
        per, start = inverse(best_d)[None, :], best_m[None, :]
        sq, sqq, sxq = _affine_sums(x, weight, per, start, rows, size, inside, top, WEIGHTED)
        best, best_d, best_m = _affine_step(
            best, best_d, best_m, sw[None, :], sx[None, :], sq, sqq, sxq, SIGNED
        )
    to = group * rows + row
    tl.store(scale + to, tl.where(alive, larger(best_d, 0.0), 0.0), mask=inside)
    tl.store(offset + to, best_m, mask=inside)


@triton.jit
def _zero_sums(x, weight, per, z, rows, size, inside, top, WEIGHTED: tl.constexpr):
    """sum w q x, not below 0, and sum w q q for every start."""
    sxq = tl.zeros(per.shape, dtype=tl.float32)
    sqq = tl.zeros(per.shape, dtype=tl.float32)
    for i in tl.range(0, size, loop_unroll_factor=2):
        v = tl.load(x, mask=inside, other=0.0)[None, :]
        q = rounded(v * per, 0.0 - z, top - z)
        wq = q * tl.load(weight + i) if WEIGHTED else q
        sxq += wq * v
        sqq += wq * q
        x += rows
    return larger(sxq, 0.0), larger(sqq, 1e-30)


@triton.jit
def zero_point(
    x,
    weight,
    tops,
    shifts,
    scale,  # float32 [groups, rows], filled
    zero,  # float32 [groups, rows], filled with whole numbers
    rows,
    size,
    starts,
    top,
    REFITS: tl.constexpr,
    WEIGHTED: tl.constexpr,
    ROWS: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """x ~ scale * (code - zero), the scale not negative, codes and zero whole, 0..top."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    group = tl.program_id(1).to(tl.int64)
    inside = row < rows
    x += group * size * rows + row
    if WEIGHTED:
        weight += group * size
    low = tl.zeros((ROWS,), dtype=tl.float32)
    high = tl.zeros((ROWS,), dtype=tl.float32)
    at = x
    for _ in tl.range(0, size, loop_unroll_factor=4):
        v = tl.load(at, mask=inside, other=0.0)
        low = smaller(v, low)
        high = larger(v, high)
        at += rows
    span = tl.where(high - low > 1e-30, high - low, 1.0)
    best = tl.zeros((ROWS,), dtype=tl.float32)
    best_d = tl.zeros((ROWS,), dtype=tl.float32)
    best_z = tl.zeros((ROWS,), dtype=tl.float32)
    for k in range(0, starts, TOGETHER):
        this = k + tl.arange(0, TOGETHER)
        per = tl.div_rn(tl.load(tops + this)[:, None], span[None, :])
        z = rounded(tl.load(shifts + this)[:, None] - low[None, :] * per, 0.0, top)
        sxq, sqq = _zero_sums(x, weight, per, z, rows, size, inside, top, WEIGHTED)
        best, better, first = best_of(tl.div_rn(sxq * sxq, sqq), best)
        best_d = picked(tl.div_rn(sxq, sqq), first, better, best_d)
        best_z = picked(z, first, better, best_z)
    for _ in range(REFITS):
        per, z = inverse(best_d)[None, :], best_z[None, :]
        sxq, sqq = _zero_sums(x, weight, per, z, rows, size, inside, top, WEIGHTED)
        best, better, first = best_of(tl.div_rn(sxq * sxq, sqq), best)
        best_d = picked(tl.div_rn(sxq, sqq), first, better, best_d)
    to = group * rows + row
    tl.store(scale + to, best_d, mask=inside)
    tl.store(zero + to, best_z, mask=inside)
