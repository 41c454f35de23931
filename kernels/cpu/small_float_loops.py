"""Small floats on arrays, compiled by numba: one pass over the weights, nothing beside them.

The loops of `small_floats`; a conversion without data uses them without torch.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from qconvert.kernels.minifloat import MiniFloat
from qconvert.kernels.pairwise import joined, leaves

Floats = NDArray[np.float32]


def nearest(w: Floats, scale: Floats, kind: MiniFloat) -> NDArray[np.uint8]:
    """Codes of w / scale: w [rows, cols], scale [rows, groups]."""
    codes = np.empty(w.shape, np.uint8)
    shape = (kind.mantissa, kind.bias, kind.magnitudes, np.float32(kind.top))
    _nearest(np.ascontiguousarray(w), np.ascontiguousarray(scale), *shape, codes)
    return codes


def errors(w: Floats, weight: Floats, scale: Floats, kind: MiniFloat) -> Floats:
    """The weighted squared error of each group, [rows, groups]; weight [cols]."""
    size = w.shape[1] // scale.shape[1]
    runs = np.array(list(leaves(size)), np.int64)
    sums = np.empty((*scale.shape, len(runs)), np.float32)
    w, weight, scale = (np.ascontiguousarray(one) for one in (w, weight, scale))
    shape = (kind.mantissa, kind.bias, np.float32(kind.top))
    _errors(w, weight, scale, *shape, runs, size, sums)
    found: Floats = joined(sums, size)
    return found


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _steps(a, mantissa, bias):
    """(a in steps between the values at a, to the nearest even; the exponent of a): exact, for a
    step is a power of two. `MiniFloat.rounded` in other words."""
    power = max((np.float32(a).view(np.int32) >> 23) - 127, 1 - bias)
    up = np.int32((127 + mantissa - power) << 23).view(np.float32)
    return np.rint(a * up), power


@njit(nogil=True, cache=True, error_model="numpy")
def _nearest(w, scale, mantissa, bias, magnitudes, top, codes):
    rows, cols = w.shape
    groups = scale.shape[1]
    size = cols // groups
    for r in range(rows):
        for g in range(groups):
            s = scale[r, g]
            for c in range(g * size, (g + 1) * size):
                v = w[r, c] / s
                steps, power = _steps(min(abs(v), top), mantissa, bias)
                found = np.int32(steps) + ((power + bias - 1) << mantissa)
                codes[r, c] = magnitudes - 1 - found if v < 0 else magnitudes - 1 + found


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _term(x, s, weight, mantissa, bias, top):
    """The weighted squared error of x on the nearest of the values times s."""
    v = x / s
    steps, power = _steps(min(abs(v), top), mantissa, bias)
    near = steps * np.int32((127 + power - mantissa) << 23).view(np.float32)
    off = (-near if v < 0 else near) * s - x
    return off * off * weight


@njit(nogil=True, cache=True, error_model="numpy")
def _errors(w, weight, scale, mantissa, bias, top, runs, size, sums):
    rows, groups = scale.shape
    e = np.empty(8, np.float32)
    for r in range(rows):
        for g in range(groups):
            s = scale[r, g]
            for k in range(len(runs)):
                first = g * size + runs[k, 0]
                last = first + runs[k, 1]
                whole = last - runs[k, 1] % 8
                e[:] = 0
                for c in range(first, whole, 8):
                    for j in range(8):
                        e[j] += _term(w[r, c + j], s, weight[c + j], mantissa, bias, top)
                total = ((e[0] + e[1]) + (e[2] + e[3])) + ((e[4] + e[5]) + (e[6] + e[7]))
                for c in range(whole, last):
                    total += _term(w[r, c], s, weight[c], mantissa, bias, top)
                sums[r, g, k] = total
