"""The fits, written out in torch: the truth that every faster version must equal bit for bit.

All work on groups of columns of a row and minimise the weighted squared error
`sum_i weight[i] * (x[i] - decoded[i])**2`, in float32, every sum taken in the order of the columns.
What they return is already rounded to what a file stores: float16 for `d`, `m` and `dmin` (or what
`shortened` says), whole numbers for zero points, sub-scales and sub-minima.

The plan is the same everywhere: try several starting scales, choose codes, solve for the scale (and
offset) that is best for those codes in closed form, keep the best. It is the search of llama.cpp's
`make_qx_quants` and `make_qkx2_quants` (ggml-quants.c) in its aim, with other starting points; the
two-level types then choose whole sub-scales by their true error and re-fit the super-block's scale.

Arguments shared by all: x float32 [rows, cols], weight float32 [cols] or None. They return codes
uint8 [rows, cols] and the parameters, float32 [rows, groups], in the order of `Fit.outputs`.
Within, a group's columns come first: [size, rows, groups], or [size, rows, super-blocks, groups].

Quotients are of two tensors: by a plain number torch multiplies by its reciprocal on some devices.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qconvert.kernels.levels import IQ4_LEVELS, IQ4_MIDDLES
from qconvert.kernels.plain.scales import TINY, half, inverse, stored

SUPER = 256
HUGE = 3e38
MIDDLES = tuple(float(middle) for middle in IQ4_MIDDLES)


def _groups(x: Tensor, *shape: int) -> Tensor:
    """[size, rows, ...groups] of x [rows, cols]; `shape`: the groups, then their columns."""
    return x.reshape(len(x), *shape).movedim(-1, 0).contiguous()


def _weights(weight: Tensor | None, x: Tensor, *shape: int) -> Tensor:
    if weight is None:
        weight = torch.ones(x.shape[1], dtype=torch.float32, device=x.device)
    return _groups(weight[None], *shape)


def _flat(found: Tensor) -> Tensor:
    """The inverse of `_groups`."""
    return found.movedim(0, -1).flatten(1)


def _ordered_sum(terms: Tensor) -> Tensor:
    """Sum over the first axis, one after the other."""
    total = torch.zeros_like(terms[0])
    for term in terms:
        total = total + term
    return total


def _number(value: float, like: Tensor) -> Tensor:
    return torch.tensor(value, dtype=torch.float32, device=like.device)


def _smaller(a: Tensor, b: Tensor | float) -> Tensor:
    return torch.where(a < b, a, b)


def _larger(a: Tensor, b: Tensor | float) -> Tensor:
    return torch.where(a > b, a, b)


def _clamp(v: Tensor, lo: float, hi: float) -> Tensor:
    return _larger(_smaller(v.round(), hi), lo)


def _position(v: Tensor) -> Tensor:
    """Which level of IQ4 is nearest, counted from 0."""
    found = torch.zeros(v.shape, dtype=torch.uint8, device=v.device)
    for middle in MIDDLES:
        found += v > middle
    return found


def _nearest(v: Tensor, lo: float, hi: float, table: bool) -> Tensor:
    if table:
        return torch.from_numpy(IQ4_LEVELS).to(v.device)[_position(v).long()]
    return _clamp(v, lo, hi)


def _encode(v: Tensor, lo: float, hi: float, table: bool) -> Tensor:
    return _position(v) if table else (_clamp(v, lo, hi) - lo).to(torch.uint8)


def _extreme(x: Tensor) -> Tensor:
    """The first element of largest magnitude along the first axis, with its sign."""
    largest, extreme = torch.zeros_like(x[0]), torch.zeros_like(x[0])
    for v in x:
        a = v.abs()
        extreme = torch.where(a > largest, v, extreme)
        largest = _larger(a, largest)
    return extreme


def _range(x: Tensor) -> tuple[Tensor, Tensor]:
    """Least and most along the first axis; of zeros of both signs, the last."""
    low, high = x[0], x[0]
    for v in x:
        low, high = _smaller(low, v), _larger(high, v)
    return low, high


def _symmetric_scale(
    x: Tensor, w: Tensor, lo: float, hi: float, table: bool, anchors: list[float], rounds: int
) -> Tensor:
    unit = inverse(_extreme(x))
    best, best_d = torch.zeros_like(unit), torch.zeros_like(unit)
    for k in range(len(anchors) + rounds):
        per = float(anchors[k]) * unit if k < len(anchors) else inverse(best_d)
        q = _nearest(x * per, lo, hi, table)
        wq = w * q
        sxq = _ordered_sum(wq * x)
        sqq = _larger(_ordered_sum(wq * q), TINY)
        gain = sxq * sxq / sqq
        better = gain > best
        best = torch.where(better, gain, best)
        best_d = torch.where(better, sxq / sqq, best_d)
    return best_d


def _affine_scale(
    x: Tensor, w: Tensor, top: float, signed: bool,
    tops: list[float], shifts: list[float], rounds: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    low, high = _range(x)
    sw, sx = _ordered_sum(w), _ordered_sum(w * x)
    if not signed:
        low, high = _smaller(low, 0.0), _larger(high, 0.0)
    alive = high - low > TINY
    span = torch.where(alive, high - low, 1.0)
    best, best_d, best_m = torch.full_like(low, -HUGE), torch.zeros_like(low), low
    for k in range(len(tops) + rounds):
        if k < len(tops):
            per = _number(tops[k], x) / span
            start = low + _number(shifts[k], x) / per
        else:
            per, start = inverse(best_d), best_m
        q = _clamp((x - start) * per, 0.0, top)
        wq = w * q
        sq, sqq, sxq = _ordered_sum(wq), _ordered_sum(wq * q), _ordered_sum(wq * x)
        det = sw * sqq - sq * sq
        solvable = det > TINY
        det = torch.where(solvable, det, 1.0)
        d, m = (sw * sxq - sx * sq) / det, (sqq * sx - sq * sxq) / det
        if not signed:
            d = torch.where(m > 0, sxq / _larger(sqq, TINY), d)
            m = torch.where(m > 0, 0.0, m)
        gain = 2 * (d * sxq + m * sx) - (d * d * sqq + 2 * (d * m) * sq + m * m * sw)
        better = solvable & (gain > best)
        best, best_d = torch.where(better, gain, best), torch.where(better, d, best_d)
        best_m = torch.where(better, m, best_m)
    return torch.where(alive, _larger(best_d, 0.0), 0.0), best_m


def fit_symmetric(
    x: Tensor, weight: Tensor | None, size: int, lo: float, hi: float, table: bool,
    anchors: list[float], rounds: int, shortened: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    """x ~ d * level(code); d may be negative."""
    shape = (x.shape[1] // size, size)
    g, w = _groups(x, *shape), _weights(weight, x, *shape)
    d = stored(_symmetric_scale(g, w, lo, hi, table, anchors, rounds), shortened)
    return _flat(_encode(g * inverse(d), lo, hi, table)), d


def fit_affine(
    x: Tensor, weight: Tensor | None, size: int, top: float,
    tops: list[float], shifts: list[float], rounds: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    """x ~ d * code + m, codes 0..top; d and m are float16."""
    shape = (x.shape[1] // size, size)
    g, w = _groups(x, *shape), _weights(weight, x, *shape)
    d, m = _affine_scale(g, w, top, True, tops, shifts, rounds)
    d, m = half(d), half(m)
    return _flat(_encode((g - m) * inverse(d), 0.0, top, False)), d, m


def _zero_scale(
    x: Tensor, w: Tensor, top: float, tops: list[float], shifts: list[float], rounds: int
) -> tuple[Tensor, Tensor]:
    low, high = _range(x)
    low, high = _smaller(low, 0.0), _larger(high, 0.0)
    span = torch.where(high - low > TINY, high - low, 1.0)
    best, best_d, best_z = torch.zeros_like(low), torch.zeros_like(low), torch.zeros_like(low)
    for k in range(len(tops) + rounds):
        if k < len(tops):
            per = _number(tops[k], x) / span
            z = _clamp(float(shifts[k]) - low * per, 0.0, top)
        else:
            per, z = inverse(best_d), best_z
        q = _larger(_smaller((x * per).round(), top - z), 0 - z)
        wq = w * q
        sxq = _larger(_ordered_sum(wq * x), 0.0)
        sqq = _larger(_ordered_sum(wq * q), TINY)
        gain = sxq * sxq / sqq
        better = gain > best
        best = torch.where(better, gain, best)
        best_d = torch.where(better, sxq / sqq, best_d)
        best_z = torch.where(better, z, best_z)
    return best_d, best_z


def fit_zero_point(
    x: Tensor, weight: Tensor | None, size: int, top: float,
    tops: list[float], shifts: list[float], rounds: int, shortened: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    """x ~ d * (code - zero), codes and the whole zero 0..top, d not negative."""
    shape = (x.shape[1] // size, size)
    g, w = _groups(x, *shape), _weights(weight, x, *shape)
    d, z = _zero_scale(g, w, top, tops, shifts, rounds)
    d = stored(d, shortened)
    v = _larger(_smaller((g * inverse(d)).round(), top - z), 0 - z)
    return _flat((v + z).to(torch.uint8)), d, z


def fit_super_symmetric(
    x: Tensor, weight: Tensor | None, size: int, lo: float, hi: float, table: bool,
    scale_lo: float, scale_hi: float, anchors: list[float], rounds: int, refits: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    """x ~ d * scale * level(code): d float16 per 256 columns, scale whole, scale_lo..scale_hi."""
    shape = (x.shape[1] // SUPER, SUPER // size, size)
    g, w = _groups(x, *shape), _weights(weight, x, *shape)
    found = _symmetric_scale(g, w, lo, hi, table, anchors, rounds)
    d = half(_extreme(found.movedim(-1, 0)) / _number(scale_lo, x))
    scales = _clamp(found * inverse(d)[..., None], scale_lo, scale_hi)
    for _ in range(refits):
        d, scales = _refine_symmetric(g, w, lo, hi, table, scale_lo, scale_hi, d, scales)
    codes = _encode(g * inverse(d[..., None] * scales), lo, hi, table)
    return _flat(codes), scales.flatten(1), d


def _refine_symmetric(
    g: Tensor, w: Tensor, lo: float, hi: float, table: bool,
    scale_lo: float, scale_hi: float, d: Tensor, scales: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Move each sub-scale by at most one to lower the error, then re-fit d in closed form."""
    best = torch.full_like(scales, HUGE)
    best_s, best_qq, best_xq = scales, torch.zeros_like(scales), torch.zeros_like(scales)
    for step in (-1, 0, 1):
        s = _larger(_smaller(scales + step, scale_hi), scale_lo)
        scale = d[..., None] * s
        q = _nearest(g * inverse(scale), lo, hi, table)
        wq = w * q
        sqq, sxq = _ordered_sum(wq * q), _ordered_sum(wq * g)
        error = scale * (scale * sqq - 2 * sxq)
        better = error < best
        best, best_s = torch.where(better, error, best), torch.where(better, s, best_s)
        best_qq, best_xq = torch.where(better, sqq, best_qq), torch.where(better, sxq, best_xq)
    saa = _ordered_sum((best_s * best_s * best_qq).movedim(-1, 0))
    sxa = _ordered_sum((best_s * best_xq).movedim(-1, 0))
    fitted = half(sxa / _larger(saa, TINY))
    return torch.where(fitted.abs() > 0, fitted, d), best_s


def fit_super_affine(
    x: Tensor, weight: Tensor | None, size: int, top: float, scale_top: float,
    tops: list[float], shifts: list[float], rounds: int, refits: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    """x ~ d * scale * code - dmin * min: d, dmin float16 per 256 columns; scale, min whole."""
    shape = (x.shape[1] // SUPER, SUPER // size, size)
    g, w = _groups(x, *shape), _weights(weight, x, *shape)
    scale, offset = _affine_scale(g, w, top, False, tops, shifts, rounds)
    low, most = 0 - offset, _number(scale_top, x)
    d = half(_larger(scale.amax(-1), 0.0) / most)
    dmin = half(_larger(low.amax(-1), 0.0) / most)
    scales = _smaller((scale * inverse(d)[..., None]).round(), scale_top)
    mins = _smaller((low * inverse(dmin)[..., None]).round(), scale_top)
    for _ in range(refits):
        d, dmin, scales, mins = _refine_affine(g, w, top, scale_top, d, dmin, scales, mins)
    start = 0 - dmin[..., None] * mins
    codes = _encode((g - start) * inverse(d[..., None] * scales), 0.0, top, False)
    return _flat(codes), scales.flatten(1), mins.flatten(1), d, dmin


def _refine_affine(
    g: Tensor, w: Tensor, top: float, scale_top: float,
    d: Tensor, dmin: Tensor, scales: Tensor, mins: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Best (scale, min) near the present ones for each sub-block; then d, dmin in closed form."""
    per_min = inverse(dmin)[..., None]
    sw, sx = _ordered_sum(w), _ordered_sum(w * g)
    best, best_s, best_m = torch.full_like(scales, HUGE), scales, mins
    best_q, best_qq, best_xq = (torch.zeros_like(scales) for _ in range(3))
    for step in (-1, 0, 1):
        s = _larger(_smaller(scales + step, scale_top), 0.0)
        scale, start = d[..., None] * s, dmin[..., None] * mins
        q = _clamp((g + start) * inverse(scale), 0.0, top)
        wq = w * q
        sq, sqq, sxq = _ordered_sum(wq), _ordered_sum(wq * q), _ordered_sum(wq * g)
        m = _clamp((scale * sq - sx) / sw * per_min, 0.0, scale_top)
        offset = dmin[..., None] * m
        error = scale * (scale * sqq - 2 * sxq - 2 * offset * sq) + offset * (2 * sx + offset * sw)
        better = error < best
        best, best_s = torch.where(better, error, best), torch.where(better, s, best_s)
        best_m, best_q = torch.where(better, m, best_m), torch.where(better, sq, best_q)
        best_qq, best_xq = torch.where(better, sqq, best_qq), torch.where(better, sxq, best_xq)
    products = (
        best_s * best_s * best_qq, best_s * best_m * best_q, best_m * best_m * sw,
        best_s * best_xq, best_m * sx,
    )  # fmt: skip
    saa, sab, sbb, sxa, sxb = (_ordered_sum(terms.movedim(-1, 0)) for terms in products)
    det = saa * sbb - sab * sab
    solvable = det > TINY
    det = torch.where(solvable, det, 1.0)
    alone = sxa / _larger(saa, TINY)
    new_d = torch.where(solvable, (sxa * sbb - sxb * sab) / det, alone)
    new_dmin = torch.where(solvable, (sxa * sab - sxb * saa) / det, 0.0)
    new_d = half(torch.where(new_dmin > 0, new_d, alone))
    keep = new_d > 0
    dmin = torch.where(keep, half(_larger(new_dmin, 0.0)), dmin)
    return torch.where(keep, new_d, d), dmin, best_s, best_m
