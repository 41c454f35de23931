"""The fits, written out in numpy: the truth that every faster version must equal bit for bit.

All work on groups of columns of a row and minimise the weighted squared error
`sum_i weight[i] * (x[i] - decoded[i])**2`, in float32, every sum taken in the order of the columns.
What they return is already rounded to what a file stores: float16 for `d`, `m` and `dmin` (or what
`shortened` says), whole numbers for zero points, sub-scales and sub-minima.

The plan is the same everywhere: try several starting scales, choose codes, solve for the scale (and
offset) that is best for those codes in closed form, keep the best. It is the search of llama.cpp's
`make_qx_quants` and `make_qkx2_quants` (ggml-quants.c) in its aim, with other starting points; the
two-level types then choose whole sub-scales by their true error and re-fit the super-block's scale.

Arguments shared by all: x float32 [rows * cols], weight float32 [cols] or None; outputs are
filled: codes uint8 [rows * cols], parameters float32 [rows, groups].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qconvert.kernels.levels import IQ4_LEVELS, IQ4_MIDDLES
from qconvert.kernels.scales import TINY, half, stored

Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]

SUPER = 256
HUGE = np.float32(3e38)


def _groups(x: Floats, rows: int, cols: int, size: int) -> Floats:
    return x.reshape(rows, cols // size, size)


def _weights(weight: Floats | None, cols: int) -> Floats:
    return np.ones(cols, np.float32) if weight is None else weight


def _ordered_sum(terms: Floats) -> Floats:
    """Sum over the last axis, one column after the other."""
    total = np.zeros(terms.shape[:-1], np.float32)
    for i in range(terms.shape[-1]):
        total = total + terms[..., i]
    return total


def _smaller(a: Floats, b: Floats | np.float32) -> Floats:
    return np.where(a < b, a, b)


def _larger(a: Floats, b: Floats | np.float32) -> Floats:
    return np.where(a > b, a, b)


def _inverse(d: Floats) -> Floats:
    """1 / d, or 0 where d is 0."""
    return np.where(d == 0, np.float32(0), np.float32(1) / np.where(d == 0, np.float32(1), d))


def _clamp(v: Floats, lo: np.float32, hi: np.float32) -> Floats:
    return _larger(_smaller(np.rint(v), hi), lo)


def _nearest(v: Floats, lo: np.float32, hi: np.float32, table: bool) -> Floats:
    if table:
        return IQ4_LEVELS[np.searchsorted(IQ4_MIDDLES, v)]
    return _clamp(v, lo, hi)


def _encode(v: Floats, lo: np.float32, hi: np.float32, table: bool) -> Codes:
    if table:
        return np.searchsorted(IQ4_MIDDLES, v).astype(np.uint8)
    return (_clamp(v, lo, hi) - lo).astype(np.uint8)


def _extreme(x: Floats) -> Floats:
    """The first element of largest magnitude along the last axis, with its sign."""
    at = np.abs(x).argmax(-1)
    return np.take_along_axis(x, at[..., None], -1)[..., 0]


def _symmetric_scale(
    x: Floats, w: Floats, lo: np.float32, hi: np.float32, table: bool, anchors: Floats, rounds: int
) -> Floats:
    unit = _inverse(_extreme(x))
    best, best_d = np.zeros_like(unit), np.zeros_like(unit)
    for k in range(len(anchors) + rounds):
        inverse = anchors[k] * unit if k < len(anchors) else _inverse(best_d)
        q = _nearest(x * inverse[..., None], lo, hi, table)
        sxq = _ordered_sum(w * q * x)
        sqq = _larger(_ordered_sum(w * q * q), TINY)
        gain = sxq * sxq / sqq
        better = gain > best
        best, best_d = np.where(better, gain, best), np.where(better, sxq / sqq, best_d)
    return best_d


def _affine_scale(
    x: Floats, w: Floats, top: np.float32, signed: bool, tops: Floats, shifts: Floats, rounds: int
) -> tuple[Floats, Floats]:
    two, zero = np.float32(2), np.float32(0)
    low, high = x.min(-1), x.max(-1)
    sw, sx = _ordered_sum(w), _ordered_sum(w * x)
    if not signed:
        low, high = _smaller(low, zero), _larger(high, zero)
    alive = high - low > TINY
    span = np.where(alive, high - low, np.float32(1))
    best, best_d, best_m = np.full_like(low, -HUGE), np.zeros_like(low), low
    for k in range(len(tops) + rounds):
        if k < len(tops):
            inverse = tops[k] / span
            start = low + shifts[k] / inverse
        else:
            inverse, start = _inverse(best_d), best_m
        q = _clamp((x - start[..., None]) * inverse[..., None], zero, top)
        sq, sqq, sxq = _ordered_sum(w * q), _ordered_sum(w * q * q), _ordered_sum(w * q * x)
        det = sw * sqq - sq * sq
        solvable = det > TINY
        det = np.where(solvable, det, np.float32(1))
        d, m = (sw * sxq - sx * sq) / det, (sqq * sx - sq * sxq) / det
        if not signed:
            d = np.where(m > zero, sxq / _larger(sqq, TINY), d)
            m = np.where(m > zero, zero, m)
        gain = two * (d * sxq + m * sx) - (d * d * sqq + two * (d * m) * sq + m * m * sw)
        better = solvable & (gain > best)
        best, best_d = np.where(better, gain, best), np.where(better, d, best_d)
        best_m = np.where(better, m, best_m)
    return np.where(alive, _larger(best_d, zero), zero), best_m


def fit_symmetric(
    x: Floats, rows: int, cols: int, weight: Floats | None,
    size: int, lo: np.float32, hi: np.float32, table: bool, anchors: Floats, rounds: int,
    shortened: int, codes: Codes, d_out: Floats,
) -> None:  # fmt: skip
    """x ~ d * level(code); d may be negative."""
    g, w = _groups(x, rows, cols, size), _groups(_weights(weight, cols), 1, cols, size)
    d = stored(_symmetric_scale(g, w, lo, hi, table, anchors, rounds), shortened)
    codes[:] = _encode(g * _inverse(d)[..., None], lo, hi, table).reshape(-1)
    d_out[:] = d


def fit_affine(
    x: Floats, rows: int, cols: int, weight: Floats | None,
    size: int, top: np.float32, tops: Floats, shifts: Floats, rounds: int,
    codes: Codes, d_out: Floats, m_out: Floats,
) -> None:  # fmt: skip
    """x ~ d * code + m, codes 0..top; d and m are float16."""
    g, w = _groups(x, rows, cols, size), _groups(_weights(weight, cols), 1, cols, size)
    d, m = _affine_scale(g, w, top, True, tops, shifts, rounds)
    d, m = half(d), half(m)
    v = (g - m[..., None]) * _inverse(d)[..., None]
    codes[:] = _encode(v, np.float32(0), top, False).reshape(-1)
    d_out[:], m_out[:] = d, m


def _zero_scale(
    x: Floats, w: Floats, top: np.float32, tops: Floats, shifts: Floats, rounds: int
) -> tuple[Floats, Floats]:
    zero = np.float32(0)
    low, high = _smaller(x.min(-1), zero), _larger(x.max(-1), zero)
    alive = high - low > TINY
    span = np.where(alive, high - low, np.float32(1))
    best, best_d, best_z = np.zeros_like(low), np.zeros_like(low), np.zeros_like(low)
    for k in range(len(tops) + rounds):
        if k < len(tops):
            inverse = tops[k] / span
            z = _clamp(shifts[k] - low * inverse, zero, top)
        else:
            inverse, z = _inverse(best_d), best_z
        q = np.rint(x * inverse[..., None])
        q = _larger(_smaller(q, (top - z)[..., None]), (zero - z)[..., None])
        sxq = _larger(_ordered_sum(w * q * x), zero)
        sqq = _larger(_ordered_sum(w * q * q), TINY)
        gain = sxq * sxq / sqq
        better = gain > best
        best, best_d = np.where(better, gain, best), np.where(better, sxq / sqq, best_d)
        best_z = np.where(better, z, best_z)
    return best_d, best_z


def fit_zero_point(
    x: Floats, rows: int, cols: int, weight: Floats | None,
    size: int, top: np.float32, tops: Floats, shifts: Floats, rounds: int, shortened: int,
    codes: Codes, d_out: Floats, zero_out: Floats,
) -> None:  # fmt: skip
    """x ~ d * (code - zero), codes and the whole zero 0..top, d not negative."""
    g, w = _groups(x, rows, cols, size), _groups(_weights(weight, cols), 1, cols, size)
    d, z = _zero_scale(g, w, top, tops, shifts, rounds)
    d = stored(d, shortened)
    v = np.rint(g * _inverse(d)[..., None])
    v = _larger(_smaller(v, (top - z)[..., None]), (np.float32(0) - z)[..., None])
    codes[:] = (v + z[..., None]).astype(np.uint8).reshape(-1)
    d_out[:], zero_out[:] = d, z


def fit_super_symmetric(
    x: Floats, rows: int, cols: int, weight: Floats | None,
    size: int, lo: np.float32, hi: np.float32, table: bool,
    scale_lo: np.float32, scale_hi: np.float32, anchors: Floats, rounds: int, refits: int,
    codes: Codes, scales_out: Floats, d_out: Floats,
) -> None:  # fmt: skip
    """x ~ d * scale * level(code): d float16 per 256 columns, scale whole, scale_lo..scale_hi."""
    shape = (-1, cols // SUPER, SUPER // size, size)
    g, w = x.reshape(shape), _weights(weight, cols).reshape(shape)
    found = _symmetric_scale(g, w, lo, hi, table, anchors, rounds)
    d = half(_extreme(found) / scale_lo)
    scales = _clamp(found * _inverse(d)[..., None], scale_lo, scale_hi)
    for _ in range(refits):
        d, scales = _refine_symmetric(g, w, lo, hi, table, scale_lo, scale_hi, d, scales)
    inverse = _inverse(d[..., None] * scales)
    codes[:] = _encode(g * inverse[..., None], lo, hi, table).reshape(-1)
    scales_out[:], d_out[:] = scales.reshape(rows, -1), d


def _refine_symmetric(
    g: Floats, w: Floats, lo: np.float32, hi: np.float32, table: bool,
    scale_lo: np.float32, scale_hi: np.float32, d: Floats, scales: Floats,
) -> tuple[Floats, Floats]:  # fmt: skip
    """Move each sub-scale by at most one to lower the error, then re-fit d in closed form."""
    best = np.full_like(scales, HUGE)
    best_s, best_qq, best_xq = scales, np.zeros_like(scales), np.zeros_like(scales)
    for step in (-1, 0, 1):
        s = _larger(_smaller(scales + np.float32(step), scale_hi), scale_lo)
        scale = d[..., None] * s
        q = _nearest(g * _inverse(scale)[..., None], lo, hi, table)
        sqq, sxq = _ordered_sum(w * q * q), _ordered_sum(w * q * g)
        error = scale * (scale * sqq - np.float32(2) * sxq)
        better = error < best
        best, best_s = np.where(better, error, best), np.where(better, s, best_s)
        best_qq, best_xq = np.where(better, sqq, best_qq), np.where(better, sxq, best_xq)
    saa = _ordered_sum(best_s * best_s * best_qq)
    sxa = _ordered_sum(best_s * best_xq)
    fitted = half(sxa / _larger(saa, TINY))
    return np.where(fitted != 0, fitted, d), best_s


def fit_super_affine(
    x: Floats, rows: int, cols: int, weight: Floats | None,
    size: int, top: np.float32, scale_top: np.float32,
    tops: Floats, shifts: Floats, rounds: int, refits: int,
    codes: Codes, scales_out: Floats, mins_out: Floats, d_out: Floats, dmin_out: Floats,
) -> None:  # fmt: skip
    """x ~ d * scale * code - dmin * min: d, dmin float16 per 256 columns; scale, min whole."""
    zero = np.float32(0)
    shape = (-1, cols // SUPER, SUPER // size, size)
    g, w = x.reshape(shape), _weights(weight, cols).reshape(shape)
    scale, offset = _affine_scale(g, w, top, False, tops, shifts, rounds)
    low = zero - offset
    d, dmin = (
        half(_larger(scale.max(-1), zero) / scale_top),
        half(_larger(low.max(-1), zero) / scale_top),
    )
    scales = _smaller(np.rint(scale * _inverse(d)[..., None]), scale_top)
    mins = _smaller(np.rint(low * _inverse(dmin)[..., None]), scale_top)
    for _ in range(refits):
        d, dmin, scales, mins = _refine_affine(g, w, top, scale_top, d, dmin, scales, mins)
    start = zero - dmin[..., None] * mins
    v = (g - start[..., None]) * _inverse(d[..., None] * scales)[..., None]
    codes[:] = _encode(v, zero, top, False).reshape(-1)
    scales_out[:], mins_out[:] = scales.reshape(rows, -1), mins.reshape(rows, -1)
    d_out[:], dmin_out[:] = d, dmin


def _refine_affine(
    g: Floats, w: Floats, top: np.float32, scale_top: np.float32,
    d: Floats, dmin: Floats, scales: Floats, mins: Floats,
) -> tuple[Floats, Floats, Floats, Floats]:  # fmt: skip
    """Best (scale, min) near the present ones for each sub-block; then d, dmin in closed form."""
    zero, two = np.float32(0), np.float32(2)
    per_min = _inverse(dmin)[..., None]
    sw, sx = _ordered_sum(np.broadcast_to(w, (1, *w.shape[1:]))), _ordered_sum(w * g)
    best, best_s, best_m = np.full_like(scales, HUGE), scales, mins
    best_q, best_qq, best_xq = np.zeros_like(scales), np.zeros_like(scales), np.zeros_like(scales)
    for step in (-1, 0, 1):
        s = _larger(_smaller(scales + np.float32(step), scale_top), zero)
        scale, start = d[..., None] * s, dmin[..., None] * mins
        q = _clamp((g + start[..., None]) * _inverse(scale)[..., None], zero, top)
        sq, sqq, sxq = _ordered_sum(w * q), _ordered_sum(w * q * q), _ordered_sum(w * q * g)
        m = _clamp((scale * sq - sx) / sw * per_min, zero, scale_top)
        offset = dmin[..., None] * m
        error = scale * (scale * sqq - two * sxq - two * offset * sq) + offset * (
            two * sx + offset * sw
        )
        better = error < best
        best, best_s = np.where(better, error, best), np.where(better, s, best_s)
        best_m, best_q = np.where(better, m, best_m), np.where(better, sq, best_q)
        best_qq, best_xq = np.where(better, sqq, best_qq), np.where(better, sxq, best_xq)
    saa, sab = _ordered_sum(best_s * best_s * best_qq), _ordered_sum(best_s * best_m * best_q)
    sbb = _ordered_sum(best_m * best_m * sw)
    sxa, sxb = _ordered_sum(best_s * best_xq), _ordered_sum(best_m * sx)
    det = saa * sbb - sab * sab
    solvable = det > TINY
    det = np.where(solvable, det, np.float32(1))
    alone = sxa / _larger(saa, TINY)
    new_d = np.where(solvable, (sxa * sbb - sxb * sab) / det, alone)
    new_dmin = np.where(solvable, (sxa * sab - sxb * saa) / det, zero)
    new_d = half(np.where(new_dmin > zero, new_d, alone))
    keep = new_d > zero
    dmin = np.where(keep, half(_larger(new_dmin, zero)), dmin)
    return np.where(keep, new_d, d), dmin, best_s, best_m
