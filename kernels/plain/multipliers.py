"""The scales of small floats on tensors: the twin of `formats.multipliers`, bit for bit.

Divisors are tensors on the device of what is divided: by a number, CUDA multiplies by its inverse.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from qconvert.kernels.minifloat import E2M1, E4M3, ONE_EXPONENT
from qconvert.kernels.plain.pairwise import pairwise
from qconvert.kernels.plain.small_floats import rounded
from qconvert.kernels.plain.words import E8M0_VALUES, looked_up
from qconvert.kernels.small_floats import FloatSearch
from qconvert.kernels.word_layouts import fp8

Params = dict[str, torch.Tensor]
Error = Callable[[torch.Tensor], torch.Tensor]

LEAST = float(np.float32(1e-30))  # no scale is smaller: its reciprocal is to be finite
_E4M3_ONE = 0x38
_E2M1_POWER = 2  # of the largest power of two among its values
_TOP = E2M1.top * E4M3.top
_MOVING = {"float": "d", "e4m3": "scale", "e8m0": "exponent"}


def searched(w: torch.Tensor, search: FloatSearch, error: Error) -> Params:
    """Of the scale that covers the largest magnitude of each group just so, and those `steps` away,
    the parameters with the least `error(scale)`, [rows, groups]."""
    grouped = w.view(len(w), -1, search.group or w.shape[1])
    covering = grouped.abs().amax(-1) / _on(w, search.kind.top)
    best = start = nearest(covering, search)
    if not search.steps:
        return best
    moving = _MOVING[search.scale]
    least = _shared(error(scale_of(start, search)), search.together)
    for step in search.steps:
        moved = _moved(start[moving], step, search)
        found = _shared(error(scale_of({**start, moving: moved}, search)), search.together)
        better = found < least
        best = {**best, moving: torch.where(better, moved, best[moving])}
        least = torch.where(better, found, least)
    return best


def nearest(wanted: torch.Tensor, search: FloatSearch) -> Params:
    """Parameters for wanted scales, not negative. A group of zeros wants 0 and gets 1."""
    if search.scale == "e4m3":
        return _nearest_e4m3(wanted, search)
    if search.scale == "shared":
        d = max(_largest(search) / np.float32(search.kind.top), np.float32(LEAST))
        return {"d": torch.full_like(wanted, float(d) if search.largest else 1.0)}
    if search.scale == "e8m0":
        reach = wanted.clamp(min=LEAST) * E2M1.top
        power = (reach.view(torch.int32) >> 23 & 255) - _E2M1_POWER
        kept = torch.where(wanted > 0, power.clamp(0, 2 * ONE_EXPONENT), ONE_EXPONENT)
        return {"exponent": kept.to(torch.uint8)}
    if search.together > 1:
        blocks = [part.amax(0, keepdim=True).expand_as(part)
                  for part in wanted.split(search.together)]  # fmt: skip
        wanted = torch.cat(blocks)
    return {"d": torch.where(wanted > 0, wanted.clamp(min=LEAST), 1.0)}


def scale_of(params: Params, search: FloatSearch) -> torch.Tensor:
    """float32 [rows, groups]"""
    if search.scale == "e4m3":
        whole = looked_up(fp8().tables()[2], params["scale"])
        return whole * (params["amax"] / _on(whole, _TOP))
    if search.scale == "e8m0":
        return looked_up(E8M0_VALUES, params["exponent"])
    return params["d"].float()


def _nearest_e4m3(wanted: torch.Tensor, search: FloatSearch) -> Params:
    largest = _largest(search)
    amax = _on(wanted, float(largest) if largest > LEAST else _TOP).repeat(len(wanted), 1)
    unit = amax / _on(wanted, _TOP) * E2M1.top
    codes = rounded(wanted * E2M1.top / unit, E4M3)
    bits = looked_up(fp8().tables()[0], codes)
    kept = torch.where(wanted > 0, bits.clamp(min=1), _E4M3_ONE)
    return {"scale": kept.to(torch.uint8), "amax": amax}


def _moved(values: torch.Tensor, step: float, search: FloatSearch) -> torch.Tensor:
    if search.scale == "float":
        return values * float(np.float32(step))
    low, high = (1, E4M3.magnitudes - 1) if search.scale == "e4m3" else (0, 2 * ONE_EXPONENT)
    return (values.short() + int(step)).clamp(low, high).to(torch.uint8)


def _shared(error: torch.Tensor, together: int) -> torch.Tensor:
    """The sum over the rows that share a scale, for each of them: the first row's, and the
    pairwise sum of the others, as numpy's `reduceat` has it."""
    if together == 1:
        return error
    parts = error.split(together)
    return torch.cat([(part[:1] + pairwise(part[1:].T)[None]).expand_as(part) for part in parts])


def _largest(search: FloatSearch) -> np.float32:
    if search.largest is None:
        raise ValueError("a tensor's scale is not known")
    return np.float32(search.largest)


def _on(like: torch.Tensor, value: float) -> torch.Tensor:
    return torch.full((), value, dtype=torch.float32, device=like.device)
