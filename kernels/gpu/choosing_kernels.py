"""How kernels that search choose among what they tried side by side: always the first that is best.

Tiles are [tried, rows]. What is no number is never better.
"""

# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def best_of(gain, best):
    """(the most of `gain` [starts, rows] and `best`, whether better, of which start: the first)."""
    gain = tl.where(gain > best[None, :], gain, best[None, :])
    most, first = tl.max(gain, 0, return_indices=True)
    return most, most > best, first


@triton.jit
def least_of(error, best):
    error = tl.where(error < best[None, :], error, best[None, :])
    least, first = tl.min(error, 0, return_indices=True)
    return least, least < best, first


@triton.jit
def picked(values, first, better, otherwise):
    """Row `first` of `values`, which each lane chooses, where `better`."""
    start = tl.arange(0, values.shape[0])
    found = tl.sum(tl.where(start[:, None] == first[None, :], values, 0.0), 0)
    return tl.where(better, found, otherwise)
