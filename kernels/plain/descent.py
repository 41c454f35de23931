"""The bodies of `descent.py` written out in numpy: the truth that the fast ones must equal.

Arrays are [cols, rows]; every statement works on all rows at once and sums run in the order of the
columns, in float32. `h` is the panel of second moments; `g` the gradient H (v - t), kept up to date
with every move. A move along p by a step s changes the error by 2 s p'g + s^2 p'Hp.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qconvert.kernels.scales import TINY, stored

Floats = NDArray[np.float32]
ZERO, TWO = np.float32(0), np.float32(2)


def _inverse(d: Floats) -> Floats:
    """1 / d, or 0 where d is 0."""
    alive = np.abs(d) > 0
    return np.where(alive, np.float32(1) / np.where(alive, d, np.float32(1)), ZERO)


def _clamp(v: Floats, low: np.float32, high: np.float32) -> Floats:
    v = np.where(v < high, v, high)
    return np.where(v > low, v, low)


def _nearest(v: Floats, low: np.float32, high: np.float32, middles: Floats, gaps: Floats) -> Floats:
    """The level nearest to v: a whole number in [low, high], or one of an ascending table."""
    if not middles.size:
        return _clamp(np.rint(v), low, high)
    level = np.full_like(v, low)
    for middle, gap in zip(middles, gaps, strict=True):
        level = level + np.where(v > middle, gap, ZERO)
    return level


def _code(v: Floats, low: np.float32, high: np.float32, middles: Floats) -> Floats:
    if not middles.size:
        return _clamp(np.rint(v), low, high) - low
    found: Floats = (v > middles[:, None]).sum(0).astype(np.float32)
    return found


def feed_back(
    w: Floats, factor: Floats, size: int, scale: Floats, offset: Floats, shifted: bool,
    low: np.float32, high: np.float32, middles: Floats, gaps: Floats,
    codes: NDArray[np.uint8], errors: Floats,
) -> None:  # fmt: skip
    """Fill `codes` and `errors`, both [cols, rows]."""
    w = w.copy()
    for j in range(len(w)):
        a = scale[j // size]
        b = offset[j // size] if shifted else ZERO
        at = (w[j] - b) * _inverse(a)
        codes[j] = _code(at, low, high, middles).astype(np.uint8)
        level = _nearest(at, low, high, middles, gaps)
        errors[j] = (w[j] - (a * level + b)) * (np.float32(1) / factor[j, j])
        for i in range(j + 1, len(w)):
            w[i] = w[i] - errors[j] * factor[j, i]


@dataclass(slots=True)
class _Panel:
    """A panel in the course of a descent, and how its levels and parameters are stored."""

    g: Floats
    h: Floats
    levels: Floats
    sums: Floats  # of each column's moments within its group
    kind: int
    low: np.float32
    high: np.float32
    middles: Floats
    gaps: Floats
    limits: tuple[np.float32, np.float32]
    low_bits: int

    def push(self, j: int, change: Floats) -> None:
        """The gradient after the value of column j changed."""
        for i in range(len(self.g)):
            self.g[i] = self.g[i] + change * self.h[j, i]

    def push_all(self, p: Floats, first: int, last: int, factor: Floats) -> None:
        for j in range(first, last):
            self.push(j, factor * p[j])

    def curvature(self, p: Floats, first: int, last: int) -> Floats:
        total = np.zeros_like(p[0])
        for j in range(first, last):
            cross = np.zeros_like(p[0])
            for i in range(first, j):
                cross = cross + self.h[j, i] * p[i]
            total = total + p[j] * (cross + cross + self.h[j, j] * p[j])
        return np.where(total > TINY, total, TINY)

    def slope(self, p: Floats, first: int, last: int) -> Floats:
        total: Floats = np.zeros_like(p[0])
        for j in range(first, last):
            total = total + p[j] * self.g[j]
        return total

    def move_codes(self, first: int, last: int, a: Floats) -> None:
        per_scale, alive = _inverse(a), np.abs(a) > 0
        for j in range(first, last):
            inverse = np.float32(1) / self.h[j, j]
            wanted = self.levels[j] - self.g[j] * inverse * per_scale
            step = _nearest(wanted, self.low, self.high, self.middles, self.gaps) - self.levels[j]
            step = np.where(alive, step, ZERO)
            self.levels[j] = self.levels[j] + step
            self.push(j, a * step)

    def move_scale(
        self, first: int, last: int, a: Floats, zero: Floats, d: Floats, s: Floats
    ) -> tuple[Floats, Floats]:
        """(new scale, what is stored of it) of a group alone, values a * (level - zero)."""
        p = self.levels - zero
        slope, curvature = self.slope(p, first, last), self.curvature(p, first, last)
        wanted = a - slope / curvature
        if self.kind == 2:
            whole = _clamp(np.rint(wanted * _inverse(d)), *self.limits)
            new = d * whole
        else:
            new = whole = stored(wanted, self.low_bits)
        step = new - a
        good = _lowers(step, slope, curvature)
        if self.kind == 4:
            good = good & (new > 0)
        self.push_all(p, first, last, np.where(good, step, ZERO))
        return np.where(good, new, a), np.where(good, whole, s)

    def move_zero(self, first: int, last: int, a: Floats, zero: Floats) -> Floats:
        """The whole zero point of a group alone."""
        slope, total = np.zeros_like(a), np.float32(0)
        for j in range(first, last):
            slope = slope + self.g[j]
            total += self.sums[j]
        slope = (ZERO - a) * slope
        curvature = a * a * total
        curvature = np.where(curvature > TINY, curvature, TINY)
        new = _clamp(np.rint(zero - slope / curvature), *self.limits)
        step = new - zero
        step = np.where(_lowers(step, slope, curvature), step, ZERO)
        self.push_all(np.ones_like(self.g), first, last, (ZERO - a) * step)
        return zero + step

    def move_line(
        self, first: int, last: int, a: Floats, b: Floats,
        d: Floats, dmin: Floats, s: Floats, m: Floats,
    ) -> tuple[Floats, Floats]:  # fmt: skip
        """What is stored of the scale and offset of a group, moved together."""
        slope_a, slope_b = self.slope(self.levels, first, last), np.zeros_like(a)
        curve_a, mixed = self.curvature(self.levels, first, last), np.zeros_like(a)
        total = np.float32(0)
        for j in range(first, last):
            slope_b = slope_b + self.g[j]
            mixed = mixed + self.levels[j] * self.sums[j]
            total += self.sums[j]
        curve_b = max(total, TINY)
        det = curve_a * curve_b - mixed * mixed
        solvable = det > TINY
        joint = (mixed * slope_b - curve_b * slope_a) / np.where(solvable, det, np.float32(1))
        wanted = a + np.where(solvable, joint, ZERO - slope_a / curve_a)
        best = step_a = step_b = np.zeros_like(a)
        best_s, best_m = s, m
        for near in (-1, 0, 1) if self.kind == 3 else (0,):
            if self.kind == 3:
                whole = np.rint(wanted * _inverse(d)) + np.float32(near)
                whole = _clamp(whole, ZERO, self.limits[1])
                new_a = d * whole
            else:
                new_a = whole = stored(wanted, self.low_bits)
            move_a = new_a - a
            wanted_b = b - (slope_b + mixed * move_a) / curve_b
            if self.kind == 3:
                low = _clamp(np.rint((ZERO - wanted_b) * _inverse(dmin)), ZERO, self.limits[1])
                new_b = ZERO - dmin * low
            else:
                new_b = low = stored(wanted_b, self.low_bits)
            move_b = new_b - b
            error = TWO * (move_a * slope_a + move_b * slope_b) + move_a * move_a * curve_a
            error = error + TWO * move_a * move_b * mixed + move_b * move_b * curve_b
            better = error < best
            best = np.where(better, error, best)
            step_a, step_b = np.where(better, move_a, step_a), np.where(better, move_b, step_b)
            best_s, best_m = np.where(better, whole, best_s), np.where(better, low, best_m)
        for j in range(first, last):
            self.push(j, step_a * self.levels[j] + step_b)
        return best_s, best_m

    def move_shared(self, p: Floats, shared: Floats, sign: bool) -> Floats:
        """The scale (or minimum) that all groups of the panel share; `p` is what it multiplies."""
        slope, curvature = self.slope(p, 0, len(p)), self.curvature(p, 0, len(p))
        new = stored(shared - slope / curvature, 0)
        good = _lowers(new - shared, slope, curvature) & (np.abs(new) > 0)
        if sign:
            good = good & (new > 0)
        self.push_all(p, 0, len(p), np.where(good, new - shared, ZERO))
        return np.where(good, new, shared)


def _lowers(step: Floats, slope: Floats, curvature: Floats) -> NDArray[np.bool_]:
    """Whether a step along a direction lowers the error."""
    found: NDArray[np.bool_] = TWO * step * slope + step * step * curvature < 0
    return found


def _lines(kind: int, scale: Floats, offset: Floats, d: Floats, dmin: Floats) -> list[Floats]:
    """Scale and offset of every group from the stored parameters."""
    a = d * scale if kind in (2, 3) else scale
    if kind in (0, 2):
        return [a, np.zeros_like(a)]
    if kind == 1:
        return [a, offset]
    return [a, ZERO - (dmin if kind == 3 else a) * offset]


def descend(
    gradient: Floats, moments: Floats, size: int, kind: int,
    low: np.float32, high: np.float32, middles: Floats, gaps: Floats,
    limit_low: np.float32, limit_high: np.float32, low_bits: int,
    chosen: Floats, scale: Floats, offset: Floats, d: Floats, dmin: Floats,
    change: Floats, sweeps: int, parameters: bool,
) -> None:  # fmt: skip
    """Change `chosen`, `scale`, `offset`, `d` and `dmin` in place; fill `change`."""
    cols = len(gradient)
    inside = moments.reshape(cols, cols // size, size)
    sums = np.zeros(cols, np.float32)
    for i in range(size):
        sums = sums + inside[np.arange(cols), np.arange(cols) // size, i]
    limits = (limit_low, limit_high)
    panel = _Panel(
        gradient.copy(), moments, chosen, sums, kind, low, high, middles, gaps, limits, low_bits
    )
    group = np.arange(cols) // size
    a, b = _lines(kind, scale, offset, d, dmin)
    before = a[group] * chosen + b[group]
    for _ in range(sweeps):
        for k in range(cols // size):
            first, last = k * size, k * size + size
            a, b = _lines(kind, scale, offset, d, dmin)
            panel.move_codes(first, last, a[k])
            if not parameters:
                continue
            if kind in (1, 3):
                scale[k], offset[k] = panel.move_line(
                    first, last, a[k], b[k], d, dmin, scale[k], offset[k]
                )
                continue
            zero = offset[k] if kind == 4 else np.zeros_like(a[k])
            new, scale[k] = panel.move_scale(first, last, a[k], zero, d, scale[k])
            if kind == 4:
                offset[k] = panel.move_zero(first, last, new, zero)
        if parameters and kind in (2, 3):
            d[:] = panel.move_shared(scale[group] * chosen, d, kind == 3)
            if kind == 3:
                dmin[:] = panel.move_shared(ZERO - offset[group], dmin, True)
    a, b = _lines(kind, scale, offset, d, dmin)
    change[:] = a[group] * chosen + b[group] - before
