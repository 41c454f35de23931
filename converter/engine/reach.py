"""What a fixed scale of activations reaches to: the magnitude that it maps to the largest number of
its type. What lies beyond is cut off.

By the largest magnitude, nothing that was seen is cut off, and one loud value makes the steps of
all others coarse. The other rules look at a sample of tokens, after the transforms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch

from qconvert.engine.rounding import Rounded
from qconvert.engine.sample import Tokens
from qconvert.formats.target import InputRounding

MAX = "max"
"""The rule that needs no sample."""
SHARE = 0.999999
"""Of all magnitudes, what the percentile covers. With 99.999 %, which cuts off what the first token
of a row is loudest in, the KL of smollm2-135m-wide in fp8-tensor rose from 0.044 to 1.16."""
FINER, DEEPEST = 8, 96
"""Reaches that are tried: so many for each factor of 2, and so many in all, down from the largest
magnitude. With some beyond it, FP8 had less error on the text that calibrates, and the KL of
smollm2-135m-wide rose from 0.045 to 0.054: the loudest values are about as large in every text, and
are exact where the largest is."""
BEYOND = 1.01
"""Of a reach: surely cut off. -128 of INT8 lies beyond 127."""


def percentile(seen: Tokens, ways: Sequence[InputRounding], largest: float) -> float:
    """The least magnitude that, with what is below it, makes up SHARE of all values."""
    sizes, order = seen.x.abs().flatten().sort()
    below = seen.count.repeat_interleave(seen.x.shape[1])[order].cumsum(0)
    place = int(torch.searchsorted(below, SHARE * below[-1]))
    return float(sizes[min(place, len(sizes) - 1)]) or largest


def least_error(seen: Tokens, ways: Sequence[InputRounding], largest: float) -> float:
    """The reach with the least squared error, of all ways to round the input together. A token that
    is hundreds of times as large as others counts as such: with the errors of each token beside its
    own size, the KL of smollm2-135m-wide in w8a8-static rose from 0.56 to 1.64."""
    best, found = math.inf, largest
    sizes = seen.x.abs()
    for step in range(DEEPEST + 1):
        reach = largest * 2 ** (-step / FINER)
        beyond = _total((sizes - BEYOND * reach).clamp_min_(0), seen)
        if beyond * len(ways) >= best:  # what is cut off only grows from here
            break
        error = sum(_total(Rounded(how, reach)(seen.x) - seen.x, seen) for how in ways)
        if error < best:
            best, found = error, reach
    return found


def _total(off: torch.Tensor, seen: Tokens) -> float:
    """The sum of the squares of `off` [n, cols] over all tokens that those seen stand for."""
    return float((off.square_().sum(1, dtype=torch.float64) * seen.count).sum())


BYTES, PASSES = 48, 500
"""Of each number of a sample: the memory to find a reach in, and the time, as passes over 8 bytes;
measured, and about the same by both rules."""

Rule = Callable[[Tokens, Sequence[InputRounding], float], float]
RULES: Mapping[str, Rule] = {"percentile": percentile, "mse": least_error}
"""Of a sample of tokens, the ways in which a fixed scale rounds them, and the largest magnitude of
all tokens. By the names that users know, besides MAX."""


def reached(
    rule: str,
    fixed: Mapping[str, Sequence[InputRounding]],
    samples: Mapping[str, Tokens],
    largest: Mapping[str, float],
) -> dict[str, float]:
    """By the names of the inputs in `fixed`, by another rule than MAX."""
    return {name: RULES[rule](samples[name], ways, largest[name]) for name, ways in fixed.items()}
