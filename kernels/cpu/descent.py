"""The bodies of `kernels/descent.py` for a CPU: sixteen rows at a time, one row a lane.

Every function does the same operations in the same order as its namesake in `plain/descent.py`.
Arrays are flat or [cols, rows] with rows a multiple of sixteen; a tile holds a panel's columns of
sixteen rows, so that the inner loops stay in the cache.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from qconvert.kernels.cpu.simd import (
    LANES,
    absolute,
    any_lane,
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
)

TINY = np.float32(1e-30)


@njit(nogil=True)
def _inverse(d):
    """1 / d, or 0 where d is 0."""
    zero, one = splat(0.0), splat(1.0)
    alive = absolute(d) > zero
    return select(alive, one / select(alive, d, one), zero)


@njit(nogil=True)
def _nearest(v, low, high, middles, gaps):
    """The level nearest to v: a whole number in [low, high], or one of an ascending table."""
    if middles.size == 0:
        return larger(smaller(rint(v), splat(high)), splat(low))
    level = splat(low)
    for k in range(middles.size):
        level = level + select(v > splat(middles[k]), splat(gaps[k]), splat(0.0))
    return level


@njit(nogil=True)
def _code(v, low, high, middles):
    """The code of the level nearest to v, counted from 0."""
    if middles.size == 0:
        return larger(smaller(rint(v), splat(high)), splat(low)) - splat(low)
    code = splat(0.0)
    for k in range(middles.size):
        code = code + select(v > splat(middles[k]), splat(1.0), splat(0.0))
    return code


@njit(nogil=True)
def _stored(v, low_bits):
    """What a file keeps of a scale."""
    if low_bits == 0:
        return half(v)
    if low_bits < 0:
        return half(_shortened(half(v), -low_bits))
    return _shortened(v, low_bits)


@njit(nogil=True)
def _shortened(v, low_bits):
    return select(absolute(v) > splat(TINY), shorten(v, low_bits), splat(0.0))


@njit(nogil=True, cache=True)
def feed_back(w, factor, size, scale, offset, shifted, low, high, middles, gaps, codes, errors):
    cols, rows = w.shape
    w, factor, codes, errors = w.ravel(), factor.ravel(), codes.ravel(), errors.ravel()
    scale, offset = scale.ravel(), offset.ravel()
    tile = np.empty(cols * LANES, np.float32)
    zero = splat(0.0)
    for row in range(0, rows, LANES):
        for j in range(cols):
            store(tile, j * LANES, load(w, j * rows + row))
        for j in range(cols):
            group = j // size * rows + row
            a = load(scale, group)
            b = load(offset, group) if shifted else zero
            v = load(tile, j * LANES)
            at = (v - b) * _inverse(a)
            level = _nearest(at, low, high, middles, gaps)
            store_bytes(codes, j * rows + row, _code(at, low, high, middles))
            error = (v - (a * level + b)) * splat(np.float32(1.0) / factor[j * cols + j])
            store(errors, j * rows + row, error)
            for i in range(j + 1, cols):
                rest = load(tile, i * LANES) - error * splat(factor[j * cols + i])
                store(tile, i * LANES, rest)


@njit(nogil=True)
def _push(g, h, cols, j, change):
    """The gradient after the value of column j changed."""
    for i in range(cols):
        store(g, i * LANES, load(g, i * LANES) + change * splat(h[j * cols + i]))


@njit(nogil=True)
def _push_all(g, h, cols, p, first, last, factor):
    """The same for columns first..last, changed by factor * p."""
    for j in range(first, last):
        _push(g, h, cols, j, factor * load(p, j * LANES))


@njit(nogil=True)
def _curvature(h, cols, p, first, last):
    """p' H p over columns first..last, above 0."""
    total = splat(0.0)
    for j in range(first, last):
        cross = splat(0.0)
        for i in range(first, j):
            cross = cross + splat(h[j * cols + i]) * load(p, i * LANES)
        v = load(p, j * LANES)
        total = total + v * (cross + cross + splat(h[j * cols + j]) * v)
    return larger(total, splat(TINY))


@njit(nogil=True)
def _slope(g, p, first, last):
    """p' g over columns first..last."""
    total = splat(0.0)
    for j in range(first, last):
        total = total + load(p, j * LANES) * load(g, j * LANES)
    return total


@njit(nogil=True)
def _lowers(step, slope, curvature):
    """Whether a step along a direction lowers the error."""
    return splat(2.0) * step * slope + step * step * curvature < splat(0.0)


@njit(nogil=True)
def _move_codes(g, h, cols, levels, first, last, a, low, high, middles, gaps):
    zero = splat(0.0)
    per_scale, alive = _inverse(a), absolute(a) > zero
    for j in range(first, last):
        level = load(levels, j * LANES)
        inverse = splat(np.float32(1.0) / h[j * cols + j])
        wanted = level - load(g, j * LANES) * inverse * per_scale
        step = _nearest(wanted, low, high, middles, gaps) - level
        step = select(alive, step, zero)
        if any_lane(absolute(step) > zero):
            store(levels, j * LANES, level + step)
            _push(g, h, cols, j, a * step)


@njit(nogil=True)
def _move_scale(g, h, cols, levels, p, first, last, a, zero_point, d, s, kind, limits, low_bits):
    """(new scale, new whole number): the scale of a group alone, values a * (level - zero)."""
    zero = splat(0.0)
    for j in range(first, last):
        store(p, j * LANES, load(levels, j * LANES) - zero_point)
    slope = _slope(g, p, first, last)
    curvature = _curvature(h, cols, p, first, last)
    wanted = a - slope / curvature
    if kind == 2:
        whole = rint(wanted * _inverse(d))
        whole = larger(smaller(whole, splat(limits[1])), splat(limits[0]))
        new = d * whole
    else:
        new = _stored(wanted, low_bits)
        whole = new
    step = new - a
    good = _lowers(step, slope, curvature)
    if kind == 4:  # a scale of zero points is not negative
        good = both(good, new > zero)
    step = select(good, step, zero)
    if any_lane(absolute(step) > zero):
        _push_all(g, h, cols, p, first, last, step)
    return select(good, new, a), select(good, whole, s)


@njit(nogil=True)
def _move_zero(g, h, cols, sums, p, first, last, a, zero_point, limits):
    """The whole zero point of a group alone."""
    zero, slope, total = splat(0.0), splat(0.0), np.float32(0.0)
    for j in range(first, last):
        slope = slope + load(g, j * LANES)
        total += sums[j]
        store(p, j * LANES, splat(1.0))
    slope = (zero - a) * slope
    curvature = larger(a * a * splat(total), splat(TINY))
    new = larger(smaller(rint(zero_point - slope / curvature), splat(limits[1])), splat(limits[0]))
    step = new - zero_point
    step = select(_lowers(step, slope, curvature), step, zero)
    if any_lane(absolute(step) > zero):
        _push_all(g, h, cols, p, first, last, (zero - a) * step)
    return zero_point + step


@njit(nogil=True)
def _move_line(g, h, cols, levels, sums, first, last, a, b, d, dmin, s, m, kind, limits, low_bits):
    """(scale, offset and their whole numbers) of a group, moved together."""
    zero, two, tiny = splat(0.0), splat(2.0), splat(TINY)
    slope_a, slope_b = _slope(g, levels, first, last), zero
    curve_a, mixed, total = _curvature(h, cols, levels, first, last), zero, np.float32(0.0)
    for j in range(first, last):
        slope_b = slope_b + load(g, j * LANES)
        mixed = mixed + load(levels, j * LANES) * splat(sums[j])
        total += sums[j]
    curve_b = larger(splat(total), tiny)
    det = curve_a * curve_b - mixed * mixed
    solvable = det > tiny
    joint = (mixed * slope_b - curve_b * slope_a) / select(solvable, det, splat(1.0))
    wanted = a + select(solvable, joint, zero - slope_a / curve_a)
    best, step_a, step_b, best_s, best_m = zero, zero, zero, s, m
    for near in range(3 if kind == 3 else 1):
        if kind == 3:
            whole = rint(wanted * _inverse(d)) + splat(np.float32(near - 1))
            whole = larger(smaller(whole, splat(limits[1])), zero)
            new_a = d * whole
        else:
            new_a = _stored(wanted, low_bits)
            whole = new_a
        move_a = new_a - a
        wanted_b = b - (slope_b + mixed * move_a) / curve_b
        if kind == 3:
            low = rint((zero - wanted_b) * _inverse(dmin))
            low = larger(smaller(low, splat(limits[1])), zero)
            new_b = zero - dmin * low
        else:
            new_b = _stored(wanted_b, low_bits)
            low = new_b
        move_b = new_b - b
        error = two * (move_a * slope_a + move_b * slope_b) + move_a * move_a * curve_a
        error = error + two * move_a * move_b * mixed + move_b * move_b * curve_b
        better = error < best
        best = select(better, error, best)
        step_a, step_b = select(better, move_a, step_a), select(better, move_b, step_b)
        best_s, best_m = select(better, whole, best_s), select(better, low, best_m)
    if any_lane(best < zero):
        for j in range(first, last):
            _push(g, h, cols, j, step_a * load(levels, j * LANES) + step_b)
    return best_s, best_m


@njit(nogil=True)
def _move_shared(g, h, cols, p, shared, sign):
    """The scale (or minimum) that all groups of the panel share; `p` is what it multiplies."""
    zero = splat(0.0)
    slope, curvature = _slope(g, p, 0, cols), _curvature(h, cols, p, 0, cols)
    new = half(shared - slope / curvature)
    good = both(_lowers(new - shared, slope, curvature), absolute(new) > zero)
    if sign:
        good = both(good, new > zero)
    step = select(good, new - shared, zero)
    if any_lane(absolute(step) > zero):
        _push_all(g, h, cols, p, 0, cols, step)
    return select(good, new, shared)


@njit(nogil=True, cache=True)
def descend(
    gradient, moments, size, kind, low, high, middles, gaps, limit_low, limit_high, low_bits,
    chosen, scale, offset, d, dmin, change, sweeps, parameters,
):  # fmt: skip
    cols, rows = gradient.shape
    gradient, h, chosen, change = gradient.ravel(), moments.ravel(), chosen.ravel(), change.ravel()
    scale, offset = scale.ravel(), offset.ravel()
    groups, zero = cols // size, splat(0.0)
    limits = (limit_low, limit_high)
    g, levels = np.empty(cols * LANES, np.float32), np.empty(cols * LANES, np.float32)
    p, before = np.empty(cols * LANES, np.float32), np.empty(cols * LANES, np.float32)
    a, b = np.empty(groups * LANES, np.float32), np.empty(groups * LANES, np.float32)
    sums = np.empty(cols, np.float32)
    for j in range(cols):
        total = np.float32(0.0)
        for i in range(j // size * size, j // size * size + size):
            total += h[j * cols + i]
        sums[j] = total
    for row in range(0, rows, LANES):
        shared = load(d, row) if kind == 2 or kind == 3 else zero
        lowest = load(dmin, row) if kind == 3 else zero
        _read_lines(a, b, groups, rows, row, kind, scale, offset, shared, lowest)
        for j in range(cols):
            level = load(chosen, j * rows + row)
            store(g, j * LANES, load(gradient, j * rows + row))
            store(levels, j * LANES, level)
            k = j // size * LANES
            store(before, j * LANES, load(a, k) * level + load(b, k))
        for _ in range(sweeps):
            for k in range(groups):
                first, last, at = k * size, k * size + size, k * rows + row
                now = load(a, k * LANES)
                _move_codes(g, h, cols, levels, first, last, now, low, high, middles, gaps)
                if not parameters:
                    continue
                if kind == 1 or kind == 3:
                    s, m = _move_line(
                        g, h, cols, levels, sums, first, last, now, load(b, k * LANES), shared,
                        lowest, load(scale, at), load(offset, at), kind, limits, low_bits,
                    )  # fmt: skip
                    store(offset, at, m)
                else:
                    zero_point = load(offset, at) if kind == 4 else zero
                    new, s = _move_scale(
                        g, h, cols, levels, p, first, last, now, zero_point, shared,
                        load(scale, at), kind, limits, low_bits,
                    )  # fmt: skip
                    if kind == 4:
                        z = _move_zero(g, h, cols, sums, p, first, last, new, zero_point, limits)
                        store(offset, at, z)
                store(scale, at, s)
                _read_lines_of(a, b, k, rows, row, kind, scale, offset, shared, lowest)
            if parameters and (kind == 2 or kind == 3):
                for j in range(cols):
                    whole = load(scale, j // size * rows + row)
                    store(p, j * LANES, whole * load(levels, j * LANES))
                shared = _move_shared(g, h, cols, p, shared, kind == 3)
                if kind == 3:
                    for j in range(cols):
                        store(p, j * LANES, zero - load(offset, j // size * rows + row))
                    lowest = _move_shared(g, h, cols, p, lowest, True)
                _read_lines(a, b, groups, rows, row, kind, scale, offset, shared, lowest)
        if kind == 2 or kind == 3:
            store(d, row, shared)
        if kind == 3:
            store(dmin, row, lowest)
        for j in range(cols):
            level = load(levels, j * LANES)
            after = load(a, j // size * LANES) * level + load(b, j // size * LANES)
            store(chosen, j * rows + row, level)
            store(change, j * rows + row, after - load(before, j * LANES))


@njit(nogil=True)
def _read_lines(a, b, groups, rows, row, kind, scale, offset, d, dmin):
    for k in range(groups):
        _read_lines_of(a, b, k, rows, row, kind, scale, offset, d, dmin)


@njit(nogil=True)
def _read_lines_of(a, b, k, rows, row, kind, scale, offset, d, dmin):
    """Scale and offset of group k from its stored parameters."""
    zero, s = splat(0.0), load(scale, k * rows + row)
    if kind == 2 or kind == 3:
        s = d * s
    store(a, k * LANES, s)
    if kind == 0 or kind == 2:
        store(b, k * LANES, zero)
    elif kind == 1:
        store(b, k * LANES, load(offset, k * rows + row))
    elif kind == 3:
        store(b, k * LANES, zero - dmin * load(offset, k * rows + row))
    else:
        store(b, k * LANES, zero - s * load(offset, k * rows + row))
