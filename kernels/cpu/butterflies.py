"""Butterflies on a processor: sums and differences of parts of a row, sixteen lanes at a time."""

# mypy: ignore-errors

from __future__ import annotations

from numba import njit

from qconvert.kernels.cpu.simd import LANES, load, splat, store


@njit(nogil=True, cache=True)
def butterflies(values, n, span, scale):
    """The stages between parts of `span` numbers and more of each row of n, in place."""
    for row in range(0, len(values), n):
        half = span
        while half < n:
            if 4 * half <= n:
                for at in range(row, row + n, 4 * half):
                    _four(values, at, half)
                half *= 4
            else:
                _two(values, row, half)
                half *= 2
        last = row + n
        for i in range(row, last - LANES + 1, LANES):
            store(values, i, load(values, i) * splat(scale))
        for i in range(last - n % LANES, last):
            values[i] *= scale


@njit(nogil=True)
def _two(v, at, half):
    """One stage of two parts."""
    whole = half - half % LANES
    for i in range(at, at + whole, LANES):
        a, b = load(v, i), load(v, i + half)
        store(v, i, a + b)
        store(v, i + half, a - b)
    for i in range(at + whole, at + half):
        a, b = v[i], v[i + half]
        v[i], v[i + half] = a + b, a - b


@njit(nogil=True)
def _four(v, at, half):
    """Two stages of four parts."""
    whole = half - half % LANES
    for i in range(at, at + whole, LANES):
        a, b = load(v, i), load(v, i + half)
        c, d = load(v, i + 2 * half), load(v, i + 3 * half)
        a, b, c, d = a + b, a - b, c + d, c - d
        store(v, i, a + c)
        store(v, i + half, b + d)
        store(v, i + 2 * half, a - c)
        store(v, i + 3 * half, b - d)
    for i in range(at + whole, at + half):
        a, b = v[i], v[i + half]
        c, d = v[i + 2 * half], v[i + 3 * half]
        a, b, c, d = a + b, a - b, c + d, c - d
        v[i], v[i + half] = a + c, b + d
        v[i + 2 * half], v[i + 3 * half] = a - c, b - d
