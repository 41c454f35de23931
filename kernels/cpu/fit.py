"""The fits of `plain.py` for a CPU, sixteen rows at a time, compiled by numba when first used.

Every function does the same operations in the same order as its namesake in `plain.py`, so both
give the same bits. There are sixteen rows or more. Arrays: x float32 [rows * cols], weight float32
[cols] or None; codes uint8 [rows * cols]; parameters float32 [rows, groups]: whole numbers, or
values that what stores them holds exactly.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from qconvert.kernels.cpu.simd import (
    LANES,
    absolute,
    both,
    half,
    larger,
    load,
    rint,
    select,
    shorten,
    smaller,
    splat,
    store,
    store_bytes,
    transpose,
)
from qconvert.kernels.levels import IQ4_GAPS, IQ4_LOWEST, IQ4_MIDDLES

SUPER = 256  # columns of a super-block
TINY = np.float32(1e-30)  # below this a sum of squares counts as zero
HUGE = np.float32(3e38)


@njit(nogil=True)
def _read_tile(x, at, cols, width, tile):
    """`width` columns of sixteen rows from x[at], lane by row."""
    even = width - width % LANES
    for i in range(0, even, LANES):
        transpose(x, at + i, cols, tile, i * LANES, LANES)
    for i in range(even, width):
        for lane in range(LANES):
            tile[i * LANES + lane] = x[at + lane * cols + i]


@njit(nogil=True)
def _write_tile(out, at, cols, width, tile):
    """The inverse of `_read_tile`."""
    even = width - width % LANES
    for i in range(0, even, LANES):
        transpose(tile, i * LANES, LANES, out, at + i, cols)
    for i in range(even, width):
        for lane in range(LANES):
            out[at + lane * cols + i] = tile[i * LANES + lane]


@njit(nogil=True)
def _write_lanes(out, row, col, width, lanes):
    """`width` values of each of sixteen rows into `out` [rows, groups]."""
    for lane in range(LANES):
        for k in range(width):
            out[row + lane, col + k] = lanes[k * LANES + lane]


@njit(nogil=True)
def _weight(weight, i):
    """Importance of column i. Without any, a constant that multiplications fold away."""
    return splat(1.0) if weight is None else splat(weight[i])


@njit(nogil=True)
def _inverse(d):
    """1 / d, or 0 where d is 0."""
    zero, one = splat(0.0), splat(1.0)
    alive = absolute(d) > zero
    return select(alive, one / select(alive, d, one), zero)


@njit(nogil=True)
def _stored(d, shortened):
    """Rounded to nearest even as `fit.SHORTENED` says; what is below TINY becomes 0."""
    if shortened == 0:
        return half(d)
    if shortened < 0:
        return half(_shortened(half(d), -shortened))
    return _shortened(d, shortened)


@njit(nogil=True)
def _shortened(d, shortened):
    return select(absolute(d) > splat(TINY), shorten(d, shortened), splat(0.0))


@njit(nogil=True)
def _nearest(v, lo, hi, table):
    """The value of the level nearest to v: a whole number in [lo, hi], or one of IQ4's levels."""
    if table:
        level = splat(IQ4_LOWEST)
        for k in range(IQ4_MIDDLES.size):
            step = select(v > splat(IQ4_MIDDLES[k]), splat(IQ4_GAPS[k]), splat(0.0))
            level = level + step
        return level
    return larger(smaller(rint(v), hi), lo)


@njit(nogil=True)
def _code(v, lo, hi, table):
    """The code of the level nearest to v, counted from 0."""
    if table:
        code = splat(0.0)
        for k in range(IQ4_MIDDLES.size):
            code = code + select(v > splat(IQ4_MIDDLES[k]), splat(1.0), splat(0.0))
        return code
    return larger(smaller(rint(v), hi), lo) - lo


@njit(nogil=True)
def _encode_symmetric(tile, at, size, d, lo, hi, table, codes):
    inverse = _inverse(d)
    for i in range(size):
        v = load(tile, (at + i) * LANES)
        store_bytes(codes, (at + i) * LANES, _code(v * inverse, lo, hi, table))


@njit(nogil=True)
def _encode_affine(tile, at, size, d, offset, top, codes):
    inverse, zero = _inverse(d), splat(0.0)
    for i in range(size):
        v = load(tile, (at + i) * LANES)
        store_bytes(
            codes, (at + i) * LANES, larger(smaller(rint((v - offset) * inverse), top), zero)
        )


@njit(nogil=True)
def _symmetric_scale(tile, weight, at, col, size, lo, hi, table, anchors, rounds):
    """Best d for x ~ d * level in one group: the largest element onto each anchor, then re-fits."""
    zero, tiny = splat(0.0), splat(TINY)
    size_of, extreme = zero, zero
    for i in range(size):
        v = load(tile, (at + i) * LANES)
        a = absolute(v)
        extreme = select(a > size_of, v, extreme)
        size_of = larger(a, size_of)
    unit = _inverse(extreme)
    best, best_d = zero, zero
    for k in range(anchors.size + rounds):
        inverse = splat(anchors[k]) * unit if k < anchors.size else _inverse(best_d)
        sxq, sqq = zero, zero
        for i in range(size):
            v = load(tile, (at + i) * LANES)
            q = _nearest(v * inverse, lo, hi, table)
            wq = _weight(weight, col + at + i) * q
            sxq = sxq + wq * v
            sqq = sqq + wq * q
        sqq = larger(sqq, tiny)
        gain = sxq * sxq / sqq
        better = gain > best
        best = select(better, gain, best)
        best_d = select(better, sxq / sqq, best_d)
    return best_d


@njit(nogil=True)
def _affine_scale(tile, weight, at, col, size, top, signed, tops, shifts, rounds):
    """Best (d, m) for x ~ d * q + m in one group; m <= 0 unless `signed`."""
    zero, one, two, tiny, vtop = splat(0.0), splat(1.0), splat(2.0), splat(TINY), splat(top)
    first = load(tile, at * LANES)
    low, high = first, first
    sw, sx = splat(0.0), zero
    for i in range(size):
        v = load(tile, (at + i) * LANES)
        low, high = smaller(low, v), larger(high, v)
        w = _weight(weight, col + at + i)
        sw = sw + w
        sx = sx + w * v
    if not signed:
        low, high = smaller(low, zero), larger(high, zero)
    span = high - low
    alive = span > tiny
    span = select(alive, span, one)
    best, best_d, best_m = splat(-HUGE), zero, low
    for k in range(tops.size + rounds):
        if k < tops.size:
            inverse = splat(tops[k]) / span
            start = low + splat(shifts[k]) / inverse
        else:
            inverse, start = _inverse(best_d), best_m
        sq, sqq, sxq = zero, zero, zero
        for i in range(size):
            v = load(tile, (at + i) * LANES)
            q = larger(smaller(rint((v - start) * inverse), vtop), zero)
            wq = _weight(weight, col + at + i) * q
            sq = sq + wq
            sqq = sqq + wq * q
            sxq = sxq + wq * v
        det = sw * sqq - sq * sq
        solvable = det > tiny
        det = select(solvable, det, one)
        d = (sw * sxq - sx * sq) / det
        m = (sqq * sx - sq * sxq) / det
        if not signed:
            above = m > zero
            d = select(above, sxq / larger(sqq, tiny), d)
            m = select(above, zero, m)
        gain = two * (d * sxq + m * sx) - (d * d * sqq + two * (d * m) * sq + m * m * sw)
        better = both(solvable, gain > best)
        best = select(better, gain, best)
        best_d = select(better, d, best_d)
        best_m = select(better, m, best_m)
    return select(alive, larger(best_d, zero), zero), best_m


@njit(nogil=True, cache=True)
def fit_symmetric(
    x, rows, cols, weight, size, lo, hi, table, anchors, rounds, shortened, codes, d_out
):
    tile, levels = np.empty(size * LANES, np.float32), np.empty(size * LANES, np.uint8)
    lanes = np.empty(LANES, np.float32)
    vlo, vhi = splat(lo), splat(hi)
    for start in range(0, rows, LANES):
        row = min(start, rows - LANES)  # the last tile may overlap the one before
        for col in range(0, cols, size):
            _read_tile(x, row * cols + col, cols, size, tile)
            d = _symmetric_scale(tile, weight, 0, col, size, vlo, vhi, table, anchors, rounds)
            d = _stored(d, shortened)
            _encode_symmetric(tile, 0, size, d, vlo, vhi, table, levels)
            _write_tile(codes, row * cols + col, cols, size, levels)
            store(lanes, 0, d)
            _write_lanes(d_out, row, col // size, 1, lanes)


@njit(nogil=True, cache=True)
def fit_affine(x, rows, cols, weight, size, top, tops, shifts, rounds, codes, d_out, m_out):
    tile, levels = np.empty(size * LANES, np.float32), np.empty(size * LANES, np.uint8)
    lanes = np.empty(LANES, np.float32)
    for start in range(0, rows, LANES):
        row = min(start, rows - LANES)  # the last tile may overlap the one before
        for col in range(0, cols, size):
            _read_tile(x, row * cols + col, cols, size, tile)
            d, m = _affine_scale(tile, weight, 0, col, size, top, True, tops, shifts, rounds)
            d, m = half(d), half(m)
            _encode_affine(tile, 0, size, d, m, splat(top), levels)
            _write_tile(codes, row * cols + col, cols, size, levels)
            store(lanes, 0, d)
            _write_lanes(d_out, row, col // size, 1, lanes)
            store(lanes, 0, m)
            _write_lanes(m_out, row, col // size, 1, lanes)


@njit(nogil=True)
def _zero_scale(tile, weight, col, size, top, tops, shifts, rounds):
    """Best d and whole zero for x ~ d * (code - zero) in one group."""
    zero, one, tiny = splat(0.0), splat(1.0), splat(TINY)
    low, high = zero, zero
    for i in range(size):
        v = load(tile, i * LANES)
        low, high = smaller(v, low), larger(v, high)
    span = high - low
    span = select(span > tiny, span, one)
    best, best_d, best_z = zero, zero, zero
    for k in range(tops.size + rounds):
        if k < tops.size:
            inverse = splat(tops[k]) / span
            z = larger(smaller(rint(splat(shifts[k]) - low * inverse), top), zero)
        else:
            inverse, z = _inverse(best_d), best_z
        least, most = zero - z, top - z
        sxq, sqq = zero, zero
        for i in range(size):
            v = load(tile, i * LANES)
            q = larger(smaller(rint(v * inverse), most), least)
            wq = _weight(weight, col + i) * q
            sxq = sxq + wq * v
            sqq = sqq + wq * q
        sxq, sqq = larger(sxq, zero), larger(sqq, tiny)
        gain = sxq * sxq / sqq
        better = gain > best
        best = select(better, gain, best)
        best_d = select(better, sxq / sqq, best_d)
        best_z = select(better, z, best_z)
    return best_d, best_z


@njit(nogil=True, cache=True)
def fit_zero_point(
    x, rows, cols, weight, size, top, tops, shifts, rounds, shortened, codes, d_out, zero_out
):
    tile, levels = np.empty(size * LANES, np.float32), np.empty(size * LANES, np.uint8)
    lanes = np.empty(LANES, np.float32)
    vtop = splat(top)
    for start in range(0, rows, LANES):
        row = min(start, rows - LANES)  # the last tile may overlap the one before
        for col in range(0, cols, size):
            _read_tile(x, row * cols + col, cols, size, tile)
            d, z = _zero_scale(tile, weight, col, size, vtop, tops, shifts, rounds)
            d = _stored(d, shortened)
            inverse, least, most = _inverse(d), splat(0.0) - z, vtop - z
            for i in range(size):
                v = rint(load(tile, i * LANES) * inverse)
                store_bytes(levels, i * LANES, larger(smaller(v, most), least) + z)
            _write_tile(codes, row * cols + col, cols, size, levels)
            store(lanes, 0, d)
            _write_lanes(d_out, row, col // size, 1, lanes)
            store(lanes, 0, z)
            _write_lanes(zero_out, row, col // size, 1, lanes)


@njit(nogil=True)
def _refine_symmetric(tile, weight, col, size, lo, hi, table, scale_lo, scale_hi, d, scales):
    """Move each sub-scale by at most one to lower the error, then re-fit d in closed form."""
    zero, two, tiny = splat(0.0), splat(2.0), splat(TINY)
    saa, sxa = zero, zero
    for j in range(SUPER // size):
        now = load(scales, j * LANES)
        best, best_s, best_qq, best_xq = splat(HUGE), now, zero, zero
        for step in range(-1, 2):
            s = larger(smaller(now + splat(step), scale_hi), scale_lo)
            scale = d * s
            inverse = _inverse(scale)
            sqq, sxq = zero, zero
            for i in range(j * size, (j + 1) * size):
                v = load(tile, i * LANES)
                q = _nearest(v * inverse, lo, hi, table)
                wq = _weight(weight, col + i) * q
                sqq = sqq + wq * q
                sxq = sxq + wq * v
            error = scale * (scale * sqq - two * sxq)
            better = error < best
            best = select(better, error, best)
            best_s = select(better, s, best_s)
            best_qq = select(better, sqq, best_qq)
            best_xq = select(better, sxq, best_xq)
        store(scales, j * LANES, best_s)
        saa = saa + best_s * best_s * best_qq
        sxa = sxa + best_s * best_xq
    fitted = half(sxa / larger(saa, tiny))
    return select(absolute(fitted) > zero, fitted, d)


@njit(nogil=True, cache=True)
def fit_super_symmetric(
    x, rows, cols, weight, size, lo, hi, table, scale_lo, scale_hi, anchors, rounds, refits,
    codes, scales_out, d_out,
):  # fmt: skip
    subs = SUPER // size
    tile, levels = np.empty(SUPER * LANES, np.float32), np.empty(SUPER * LANES, np.uint8)
    scales = np.empty(subs * LANES, np.float32)
    lanes = np.empty(LANES, np.float32)
    zero, vlo, vhi = splat(0.0), splat(lo), splat(hi)
    vscale_lo, vscale_hi = splat(scale_lo), splat(scale_hi)
    for start in range(0, rows, LANES):
        row = min(start, rows - LANES)  # the last tile may overlap the one before
        for col in range(0, cols, SUPER):
            _read_tile(x, row * cols + col, cols, SUPER, tile)
            size_of, extreme = zero, zero
            for j in range(subs):
                s = _symmetric_scale(
                    tile, weight, j * size, col, size, vlo, vhi, table, anchors, rounds
                )
                store(scales, j * LANES, s)
                a = absolute(s)
                extreme = select(a > size_of, s, extreme)
                size_of = larger(a, size_of)
            d = half(extreme / vscale_lo)
            inverse = _inverse(d)
            for j in range(subs):
                s = rint(load(scales, j * LANES) * inverse)
                store(scales, j * LANES, larger(smaller(s, vscale_hi), vscale_lo))
            for _ in range(refits):
                d = _refine_symmetric(
                    tile, weight, col, size, vlo, vhi, table, vscale_lo, vscale_hi, d, scales
                )
            for j in range(subs):
                scale = d * load(scales, j * LANES)
                _encode_symmetric(tile, j * size, size, scale, vlo, vhi, table, levels)
            _write_tile(codes, row * cols + col, cols, SUPER, levels)
            _write_lanes(scales_out, row, col // size, subs, scales)
            store(lanes, 0, d)
            _write_lanes(d_out, row, col // SUPER, 1, lanes)


@njit(nogil=True)
def _refine_affine(tile, weight, col, size, top, scale_top, d, dmin, scales, mins):
    """Best (scale, min) near the present ones for each sub-block; then d, dmin in closed form."""
    zero, one, two, tiny = splat(0.0), splat(1.0), splat(2.0), splat(TINY)
    per_min = _inverse(dmin)
    saa, sab, sbb, sxa, sxb = zero, zero, zero, zero, zero
    for j in range(SUPER // size):
        now, low = load(scales, j * LANES), load(mins, j * LANES)
        best, best_s, best_m = splat(HUGE), now, low
        best_q, best_qq, best_xq = zero, zero, zero
        sw, sx = zero, zero
        for i in range(j * size, (j + 1) * size):
            w = _weight(weight, col + i)
            sw = sw + w
            sx = sx + w * load(tile, i * LANES)
        for step in range(-1, 2):
            s = larger(smaller(now + splat(step), scale_top), zero)
            scale = d * s
            inverse, start = _inverse(scale), dmin * low
            sq, sqq, sxq = zero, zero, zero
            for i in range(j * size, (j + 1) * size):
                v = load(tile, i * LANES)
                q = larger(smaller(rint((v + start) * inverse), top), zero)
                wq = _weight(weight, col + i) * q
                sq = sq + wq
                sqq = sqq + wq * q
                sxq = sxq + wq * v
            m = larger(smaller(rint((scale * sq - sx) / sw * per_min), scale_top), zero)
            offset = dmin * m
            error = scale * (scale * sqq - two * sxq - two * offset * sq) + offset * (
                two * sx + offset * sw
            )
            better = error < best
            best = select(better, error, best)
            best_s, best_m = select(better, s, best_s), select(better, m, best_m)
            best_q, best_qq = select(better, sq, best_q), select(better, sqq, best_qq)
            best_xq = select(better, sxq, best_xq)
        store(scales, j * LANES, best_s)
        store(mins, j * LANES, best_m)
        saa = saa + best_s * best_s * best_qq
        sab = sab + best_s * best_m * best_q
        sbb = sbb + best_m * best_m * sw
        sxa = sxa + best_s * best_xq
        sxb = sxb + best_m * sx
    det = saa * sbb - sab * sab
    solvable = det > tiny
    det = select(solvable, det, one)
    alone = sxa / larger(saa, tiny)
    new_d = select(solvable, (sxa * sbb - sxb * sab) / det, alone)
    new_dmin = select(solvable, (sxa * sab - sxb * saa) / det, zero)
    new_d = half(select(new_dmin > zero, new_d, alone))
    keep = new_d > zero
    return select(keep, new_d, d), select(keep, half(larger(new_dmin, zero)), dmin)


@njit(nogil=True, cache=True)
def fit_super_affine(
    x, rows, cols, weight, size, top, scale_top, tops, shifts, rounds, refits,
    codes, scales_out, mins_out, d_out, dmin_out,
):  # fmt: skip
    subs = SUPER // size
    tile, levels = np.empty(SUPER * LANES, np.float32), np.empty(SUPER * LANES, np.uint8)
    scales, mins = np.empty(subs * LANES, np.float32), np.empty(subs * LANES, np.float32)
    lanes = np.empty(LANES, np.float32)
    zero, vtop, vscale_top = splat(0.0), splat(top), splat(scale_top)
    for start in range(0, rows, LANES):
        row = min(start, rows - LANES)  # the last tile may overlap the one before
        for col in range(0, cols, SUPER):
            _read_tile(x, row * cols + col, cols, SUPER, tile)
            d, dmin = zero, zero
            for j in range(subs):
                s, m = _affine_scale(
                    tile, weight, j * size, col, size, top, False, tops, shifts, rounds
                )
                store(scales, j * LANES, s)
                store(mins, j * LANES, zero - m)
                d, dmin = larger(d, s), larger(dmin, zero - m)
            d, dmin = half(d / vscale_top), half(dmin / vscale_top)
            per_scale, per_min = _inverse(d), _inverse(dmin)
            for j in range(subs):
                s, m = load(scales, j * LANES) * per_scale, load(mins, j * LANES) * per_min
                store(scales, j * LANES, smaller(rint(s), vscale_top))
                store(mins, j * LANES, smaller(rint(m), vscale_top))
            for _ in range(refits):
                d, dmin = _refine_affine(
                    tile, weight, col, size, vtop, vscale_top, d, dmin, scales, mins
                )
            for j in range(subs):
                scale, offset = d * load(scales, j * LANES), dmin * load(mins, j * LANES)
                _encode_affine(tile, j * size, size, scale, zero - offset, vtop, levels)
            _write_tile(codes, row * cols + col, cols, SUPER, levels)
            _write_lanes(scales_out, row, col // size, subs, scales)
            _write_lanes(mins_out, row, col // size, subs, mins)
            store(lanes, 0, d)
            _write_lanes(d_out, row, col // SUPER, 1, lanes)
            store(lanes, 0, dmin)
            _write_lanes(dmin_out, row, col // SUPER, 1, lanes)
