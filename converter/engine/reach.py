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
from qconvert.formats.target import InputRounding

MAX = "max"
"""The rule that needs no sample."""
SHARE = 0.9999
"""Of all magnitudes, what the percentile covers."""
FINER, WIDEST, DEEPEST = 8, 8, 96
"""Reaches that are tried: so many for each factor of 2, from so many steps above the largest
magnitude, for floats, to so many below it."""

BEYOND = 1.01
"""Of a reach: surely cut off. -128 of INT8 lies beyond 127."""


def percentile(x: torch.Tensor, ways: Sequence[InputRounding], largest: float) -> float:
    """The magnitude below which SHARE of all values lie."""
    sizes = x.abs().flatten()
    place = max(1, math.ceil(SHARE * sizes.numel()))
    return float(sizes.kthvalue(place).values) or largest


def least_error(x: torch.Tensor, ways: Sequence[InputRounding], largest: float) -> float:
    """The reach with the least squared error, of all ways to round x together."""
    best, found = math.inf, largest
    sizes = x.abs()
    for step in range(-WIDEST, DEEPEST + 1):
        reach = largest * 2 ** (-step / FINER)
        beyond = (sizes - BEYOND * reach).clamp_min_(0).square_().sum(dtype=torch.float64)
        if float(beyond) * len(ways) >= best:  # what is cut off only grows from here
            break
        error = sum(_error(x, Rounded(how, reach)) for how in ways)
        if error < best:
            best, found = error, reach
    return found


def _error(x: torch.Tensor, rounded: Rounded) -> float:
    return float((rounded(x) - x).square_().sum(dtype=torch.float64))


Rule = Callable[[torch.Tensor, Sequence[InputRounding], float], float]
RULES: Mapping[str, Rule] = {"percentile": percentile, "mse": least_error}
"""Of tokens x [n, cols], the ways in which a fixed scale rounds them, and the largest magnitude of
all tokens. By the names that users know, besides MAX."""


def reached(
    rule: str,
    fixed: Mapping[str, Sequence[InputRounding]],
    samples: Mapping[str, torch.Tensor],
    largest: Mapping[str, float],
) -> dict[str, float]:
    """By the names of the inputs in `fixed`, by another rule than MAX."""
    return {name: RULES[rule](samples[name], ways, largest[name]) for name, ways in fixed.items()}
