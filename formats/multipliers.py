"""How the scale of each group of small floats is stored: the value is scale * level.

Each kind says which parameters a tensor has, what scale they stand for, which are nearest to a
wanted scale, and which others a search looks at. Arrays are [rows, groups] unless said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.grid import ScaleOverflow
from qconvert.kernels.minifloat import E2M1, E4M3, ONE_EXPONENT, floor_power, powers

Floats = NDArray[np.float32]
Params = Mapping[str, NDArray[Any]]
Stored = Literal["float", "shared", "e4m3", "e8m0"]

LEAST = np.float32(1e-30)  # no scale is smaller: its reciprocal is to be finite
ROW = 0
"""Columns that share a parameter of which a row has one."""

_E4M3_ONE = 0x38
_E2M1_POWER = 2  # of the largest power of two among its values
_NVFP4_TOP = np.float32(E2M1.top * E4M3.top)  # 2688: the largest value before the global scale


class Multipliers(Protocol):
    @property
    def stored(self) -> Stored:
        """What `kernels.small_floats` calls this kind of scale."""
        ...

    @property
    def fields(self) -> tuple[tuple[str, type, int], ...]:
        """(name, type, columns that share one) of the parameters, the one that moves first."""
        ...

    @property
    def bits(self) -> float:
        """Stored for each group, as tightly as a target can."""
        ...

    @property
    def together(self) -> int: ...
    @property
    def steps(self) -> tuple[float, ...]:
        """What a search gives to `moved`; the nearest themselves are not among them."""
        ...

    def nearest(self, wanted: Floats) -> Params:
        """Parameters for wanted scales, not negative. A group of zeros wants 0 and gets 1."""
        ...

    def moved(self, params: Params, step: float) -> Params:
        """What lies `step` away, for every group."""
        ...

    def scale(self, params: Params) -> Floats: ...


@dataclass(frozen=True, slots=True)
class Plain:
    """A float32 for each group of columns, or for each block of `together` rows of it. Parameters:
    "d", repeated over the rows that share it."""

    group: int
    together: int = 1
    steps: tuple[float, ...] = tuple(2 ** (step / 8) for step in range(1, 8))
    """An octave above: the spacing of floats repeats after that. The largest weight then lies
    lower in the table, which costs little, and the many below it fall better."""

    @property
    def stored(self) -> Stored:
        return "float"

    @property
    def fields(self) -> tuple[tuple[str, type, int], ...]:
        return (("d", np.float32, self.group),)

    @property
    def bits(self) -> float:
        return 32 / self.together

    def nearest(self, wanted: Floats) -> Params:
        d = wanted
        if self.together > 1:
            starts = np.arange(0, len(d), self.together)
            d = np.maximum.reduceat(d, starts).repeat(self.together, 0)[: len(d)]
        if not np.isfinite(d).all():
            raise ScaleOverflow("a scale is beyond float32")
        return {"d": np.where(d > 0, np.maximum(d, LEAST), np.float32(1)).astype(np.float32)}

    def moved(self, params: Params, step: float) -> Params:
        return {"d": params["d"] * np.float32(step)}

    def scale(self, params: Params) -> Floats:
        return params["d"].astype(np.float32)


@dataclass(frozen=True, slots=True)
class Shared:
    """One float32 for a whole tensor and what is fused with it: `largest` / `top`. Parameters: "d"
    [rows, 1], all equal."""

    top: float
    largest: float | None = None
    together: int = 1
    steps: tuple[float, ...] = ()

    @property
    def stored(self) -> Stored:
        return "shared"

    @property
    def fields(self) -> tuple[tuple[str, type, int], ...]:
        return (("d", np.float32, ROW),)

    @property
    def bits(self) -> float:
        return 0

    def nearest(self, wanted: Floats) -> Params:
        largest = _bound(self.largest)
        d = largest / np.float32(self.top) if largest > 0 else np.float32(1)
        return {"d": np.full(wanted.shape, max(d, LEAST), np.float32)}

    def moved(self, params: Params, step: float) -> Params:
        return params

    def scale(self, params: Params) -> Floats:
        return params["d"].astype(np.float32)


@dataclass(frozen=True, slots=True)
class Float8:
    """NVFP4's: e4m3 for 16 columns, times a float32 for the tensor and what is fused with it.
    Parameters: "scale" uint8, the bits of e4m3; "amax" float32 [rows, 1], all equal: the largest
    magnitude, of which the global scale amax / (6 * 448) is made.

    In the order of operations of NVIDIA ModelOpt 0.47 (`nvfp4_tensor.py`), but that a scale is at
    most 448 and never 0.
    """

    group: int
    largest: float | None = None
    together: int = 1
    steps: tuple[float, ...] = (-3, -2, -1, 1, 2, 3, 4, 5, 6)
    """Neighbours in e4m3: from -3, where the largest weight is cut off, to 6, where it lies at or
    below 4 instead of 6. Wider does not help (measured on normal and on heavy tails)."""

    @property
    def stored(self) -> Stored:
        return "e4m3"

    @property
    def fields(self) -> tuple[tuple[str, type, int], ...]:
        return (("scale", np.uint8, self.group), ("amax", np.float32, ROW))

    @property
    def bits(self) -> float:
        return 8

    def nearest(self, wanted: Floats) -> Params:
        largest = _bound(self.largest)
        amax = np.full((len(wanted), 1), largest if largest > LEAST else _NVFP4_TOP, np.float32)
        top = np.float32(E2M1.top)
        reach = wanted * top  # of the group: back to the magnitude that was divided by 6
        bits = E4M3.bits(E4M3.rounded(reach / (top * (amax / _NVFP4_TOP))))
        bits = np.where(wanted > 0, np.maximum(bits, 1), _E4M3_ONE).astype(np.uint8)
        return {"scale": bits, "amax": amax}

    def moved(self, params: Params, step: float) -> Params:
        bits = params["scale"].astype(np.int16) + int(step)
        kept = np.clip(bits, 1, E4M3.magnitudes - 1).astype(np.uint8)
        return {**params, "scale": kept}

    def scale(self, params: Params) -> Floats:
        whole = E4M3.levels[E4M3.codes(params["scale"])]
        found: Floats = whole * (params["amax"].astype(np.float32) / _NVFP4_TOP)
        return found


@dataclass(frozen=True, slots=True)
class PowerOfTwo:
    """E8M0: one byte for a group of columns. Parameters: "exponent" uint8, 2^(exponent - 127).

    Nearest is the rule of the OCP microscaling specification 1.0, section 6.3: the largest power of
    two in the largest magnitude, over that in the largest level.
    """

    group: int
    together: int = 1
    steps: tuple[float, ...] = (1, -1)

    @property
    def stored(self) -> Stored:
        return "e8m0"

    @property
    def fields(self) -> tuple[tuple[str, type, int], ...]:
        return (("exponent", np.uint8, self.group),)

    @property
    def bits(self) -> float:
        return 8

    def nearest(self, wanted: Floats) -> Params:
        top = np.float32(E2M1.top)
        power = floor_power(np.maximum(wanted, LEAST) * top) - _E2M1_POWER
        if not np.isfinite(wanted).all():
            raise ScaleOverflow("a scale is beyond E8M0")
        kept = np.clip(power + ONE_EXPONENT, 0, 2 * ONE_EXPONENT)
        return {"exponent": np.where(wanted > 0, kept, ONE_EXPONENT).astype(np.uint8)}

    def moved(self, params: Params, step: float) -> Params:
        exponent = params["exponent"].astype(np.int16) + int(step)
        return {"exponent": np.clip(exponent, 0, 2 * ONE_EXPONENT).astype(np.uint8)}

    def scale(self, params: Params) -> Floats:
        return powers(params["exponent"].astype(np.uint8))


def _bound(largest: float | None) -> np.float32:
    if largest is None:
        raise ValueError("a tensor's scale is not known: fit to `grid.bound(largest)`")
    if not np.isfinite(np.float32(largest)):
        raise ScaleOverflow("the largest weight is not finite")
    return np.float32(largest)
