"""The bodies of `descent.py` written out in torch: the truth that the fast ones must equal.

Arrays are [cols, rows]; every statement works on all rows at once and sums run in the order of the
columns, in float32. `h` is the panel of second moments; `g` the gradient H (v - t), kept up to date
with every move. A move along p by a step s changes the error by 2 s p'g + s^2 p'Hp.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qconvert.kernels.plain.scales import half, stored
from qconvert.kernels.scales import TINY

Floats = NDArray[np.float32]
_TINY = float(TINY)


def _inverse(d: Tensor) -> Tensor:
    """1 / d, or 0 where d is 0."""
    one = torch.ones_like(d)
    alive = d.abs() > 0
    return torch.where(alive, one / torch.where(alive, d, one), 0.0)


def _clamp(v: Tensor, low: float, high: float) -> Tensor:
    v = torch.where(v < high, v, high)
    return torch.where(v > low, v, low)


def _at_least_tiny(v: Tensor) -> Tensor:
    return torch.where(v > _TINY, v, _TINY)


@dataclass(frozen=True, slots=True)
class _Levels:
    """Whole numbers in [low, high], or an ascending table with `middles` between neighbours."""

    low: float
    high: float
    middles: tuple[float, ...]
    gaps: tuple[float, ...]

    @classmethod
    def of(cls, low: np.float32, high: np.float32, middles: Floats, gaps: Floats) -> _Levels:
        return cls(float(low), float(high), tuple(middles.tolist()), tuple(gaps.tolist()))

    def nearest(self, v: Tensor) -> Tensor:
        """The level nearest to v."""
        if not self.middles:
            return _clamp(v.round(), self.low, self.high)
        level = torch.full_like(v, self.low)
        for middle, gap in zip(self.middles, self.gaps, strict=True):
            level = level + (v > middle).to(v.dtype) * gap
        return level

    def code(self, v: Tensor) -> Tensor:
        """The code of that level, counted from 0."""
        if not self.middles:
            return _clamp(v.round(), self.low, self.high) - self.low
        code = torch.zeros_like(v)
        for middle in self.middles:
            code += v > middle
        return code


def feed_back(
    w: Tensor, factor: Tensor, size: int, scale: Tensor, offset: Tensor, shifted: bool,
    low: np.float32, high: np.float32, middles: Floats, gaps: Floats,
    codes: Tensor, errors: Tensor,
) -> None:  # fmt: skip
    """Fill `codes` and `errors`, both [cols, rows]."""
    w, levels = w.clone(), _Levels.of(low, high, middles, gaps)
    over = torch.ones_like(factor.diagonal()) / factor.diagonal()
    for j in range(len(w)):
        a = scale[j // size]
        b = offset[j // size] if shifted else torch.zeros_like(a)
        at = (w[j] - b) * _inverse(a)
        codes[j] = levels.code(at).to(torch.uint8)
        errors[j] = (w[j] - (a * levels.nearest(at) + b)) * over[j]
        w[j + 1 :] -= errors[j] * factor[j, j + 1 :, None]


@dataclass(slots=True)
class _Panel:
    """A panel in the course of a descent, and how its levels and parameters are stored."""

    g: Tensor
    h: Tensor
    chosen: Tensor
    sums: Tensor  # of each column's moments within its group
    kind: int
    levels: _Levels
    limits: tuple[float, float]
    low_bits: int

    def push(self, j: int, change: Tensor) -> None:
        """The gradient after the value of column j changed."""
        self.g += change * self.h[j][:, None]

    def push_all(self, p: Tensor, first: int, last: int, factor: Tensor) -> None:
        for j in range(first, last):
            self.push(j, factor * p[j])

    def curvature(self, p: Tensor, first: int, last: int) -> Tensor:
        """Each column's products with those before it, in their order; then over the columns."""
        h, p = self.h[first:last, first:last], p[first:last]
        cross = torch.zeros_like(p)
        for i in range(last - first):
            cross[i + 1 :] += h[i + 1 :, i, None] * p[i]
        terms = p * (cross + cross + h.diagonal()[:, None] * p)
        return _at_least_tiny(_ordered_sum(terms))

    def slope(self, p: Tensor, first: int, last: int) -> Tensor:
        return _ordered_sum(p[first:last] * self.g[first:last])

    def move_codes(self, first: int, last: int, a: Tensor) -> None:
        per_scale, alive = _inverse(a), a.abs() > 0
        over = torch.ones_like(self.h.diagonal()) / self.h.diagonal()
        for j in range(first, last):
            wanted = self.chosen[j] - self.g[j] * over[j] * per_scale
            step = self.levels.nearest(wanted) - self.chosen[j]
            step = torch.where(alive, step, 0.0)
            self.chosen[j] += step
            self.push(j, a * step)

    def move_scale(
        self, first: int, last: int, a: Tensor, zero: Tensor, d: Tensor, s: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(new scale, what is stored of it) of a group alone, values a * (level - zero)."""
        p = self.chosen - zero
        slope, curvature = self.slope(p, first, last), self.curvature(p, first, last)
        wanted = a - slope / curvature
        if self.kind == 2:
            whole = _clamp((wanted * _inverse(d)).round(), *self.limits)
            new = d * whole
        else:
            new = whole = stored(wanted, self.low_bits)
        step = new - a
        good = _lowers(step, slope, curvature)
        if self.kind == 4:
            good = good & (new > 0)
        self.push_all(p, first, last, torch.where(good, step, 0.0))
        return torch.where(good, new, a), torch.where(good, whole, s)

    def move_zero(self, first: int, last: int, a: Tensor, zero: Tensor) -> Tensor:
        """The whole zero point of a group alone."""
        slope = -a * _ordered_sum(self.g[first:last])
        curvature = _at_least_tiny(a * a * _ordered_sum(self.sums[first:last]))
        new = _clamp((zero - slope / curvature).round(), *self.limits)
        step = new - zero
        step = torch.where(_lowers(step, slope, curvature), step, 0.0)
        self.push_all(torch.ones_like(self.g), first, last, -a * step)
        return zero + step

    def move_line(
        self, first: int, last: int, a: Tensor, b: Tensor,
        d: Tensor, dmin: Tensor, s: Tensor, m: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """What is stored of the scale and offset of a group, moved together."""
        slope_a, slope_b = self.slope(self.chosen, first, last), _ordered_sum(self.g[first:last])
        curve_a, sums = self.curvature(self.chosen, first, last), self.sums[first:last]
        mixed = _ordered_sum(self.chosen[first:last] * sums[:, None])
        curve_b = _at_least_tiny(_ordered_sum(sums))
        det = curve_a * curve_b - mixed * mixed
        solvable = det > _TINY
        joint = (mixed * slope_b - curve_b * slope_a) / torch.where(solvable, det, 1.0)
        wanted = a + torch.where(solvable, joint, -slope_a / curve_a)
        best = step_a = step_b = torch.zeros_like(a)
        best_s, best_m = s, m
        for near in (-1, 0, 1) if self.kind == 3 else (0,):
            if self.kind == 3:
                whole = _clamp((wanted * _inverse(d)).round() + near, 0.0, self.limits[1])
                new_a = d * whole
            else:
                new_a = whole = stored(wanted, self.low_bits)
            move_a = new_a - a
            wanted_b = b - (slope_b + mixed * move_a) / curve_b
            if self.kind == 3:
                low = _clamp((-wanted_b * _inverse(dmin)).round(), 0.0, self.limits[1])
                new_b = -(dmin * low)
            else:
                new_b = low = stored(wanted_b, self.low_bits)
            move_b = new_b - b
            error = 2 * (move_a * slope_a + move_b * slope_b) + move_a * move_a * curve_a
            error = error + 2 * move_a * move_b * mixed + move_b * move_b * curve_b
            better = error < best
            best = torch.where(better, error, best)
            step_a = torch.where(better, move_a, step_a)
            step_b = torch.where(better, move_b, step_b)
            best_s, best_m = torch.where(better, whole, best_s), torch.where(better, low, best_m)
        for j in range(first, last):
            self.push(j, step_a * self.chosen[j] + step_b)
        return best_s, best_m

    def move_shared(self, p: Tensor, shared: Tensor, sign: bool) -> Tensor:
        """The scale (or minimum) that all groups of the panel share; `p` is what it multiplies."""
        slope, curvature = self.slope(p, 0, len(p)), self.curvature(p, 0, len(p))
        new = half(shared - slope / curvature)
        good = _lowers(new - shared, slope, curvature) & (new.abs() > 0)
        if sign:
            good = good & (new > 0)
        self.push_all(p, 0, len(p), torch.where(good, new - shared, 0.0))
        return torch.where(good, new, shared)


def _ordered_sum(terms: Tensor) -> Tensor:
    """Over the first axis, one column after the other."""
    total = torch.zeros_like(terms[0])
    for term in terms:
        total = total + term
    return total


def _lowers(step: Tensor, slope: Tensor, curvature: Tensor) -> Tensor:
    """Whether a step along a direction lowers the error."""
    return 2 * step * slope + step * step * curvature < 0


def _lines(
    kind: int, scale: Tensor, offset: Tensor, d: Tensor, dmin: Tensor
) -> tuple[Tensor, Tensor]:
    """Scale and offset of every group from the stored parameters."""
    a = d * scale if kind in (2, 3) else scale
    if kind in (0, 2):
        return a, torch.zeros_like(a)
    if kind == 1:
        return a, offset
    return a, -((dmin if kind == 3 else a) * offset)


def _values(chosen: Tensor, size: int, lines: tuple[Tensor, Tensor]) -> Tensor:
    a, b = (one.repeat_interleave(size, 0) for one in lines)
    return a * chosen + b


def column_sums(moments: Tensor, size: int) -> Tensor:
    """Of each column's moments with the columns of its own group, in their order: [cols]."""
    cols = len(moments)
    blocks = moments.reshape(cols // size, size, cols // size, size)
    inside = blocks.diagonal(dim1=0, dim2=2)  # [size, size, groups]
    return _ordered_sum(inside.permute(1, 2, 0)).reshape(cols)


def descend(
    gradient: Tensor, moments: Tensor, size: int, kind: int,
    low: np.float32, high: np.float32, middles: Floats, gaps: Floats,
    limit_low: np.float32, limit_high: np.float32, low_bits: int,
    chosen: Tensor, scale: Tensor, offset: Tensor, d: Tensor, dmin: Tensor,
    change: Tensor, sweeps: int, parameters: bool,
) -> None:  # fmt: skip
    """Change `chosen`, `scale`, `offset`, `d` and `dmin` in place; fill `change`."""
    groups = len(gradient) // size
    limits = (float(limit_low), float(limit_high))
    panel = _Panel(
        gradient.clone(), moments, chosen, column_sums(moments, size), kind,
        _Levels.of(low, high, middles, gaps), limits, low_bits,
    )  # fmt: skip
    before = _values(chosen, size, _lines(kind, scale, offset, d, dmin))
    for _ in range(sweeps):
        for k in range(groups):
            first, last = k * size, k * size + size
            a, b = (one[k] for one in _lines(kind, scale, offset, d, dmin))
            panel.move_codes(first, last, a)
            if not parameters:
                continue
            if kind in (1, 3):
                scale[k], offset[k] = panel.move_line(
                    first, last, a, b, d, dmin, scale[k], offset[k]
                )
                continue
            zero = offset[k] if kind == 4 else torch.zeros_like(a)
            new, scale[k] = panel.move_scale(first, last, a, zero, d, scale[k])
            if kind == 4:
                offset[k] = panel.move_zero(first, last, new, zero)
        if parameters and kind in (2, 3):
            wide = scale.repeat_interleave(size, 0)
            d[:] = panel.move_shared(wide * chosen, d, kind == 3)
            if kind == 3:
                dmin[:] = panel.move_shared(-offset.repeat_interleave(size, 0), dmin, True)
    change[:] = _values(chosen, size, _lines(kind, scale, offset, d, dmin)) - before
