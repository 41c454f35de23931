"""What is searched: the data of a grid's fit. `fit` runs it; `descent` moves what it found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qconvert.kernels.levels import IQ4_LEVELS
from qconvert.kernels.scales import SHORTENED

SUPER = 256
"""Columns of a super-block."""


class Fit(Protocol):
    """One search. `outputs` names the parameters and says how many columns share one."""

    @property
    def kernel(self) -> str: ...
    @property
    def size(self) -> int:
        """Columns of a group: they share one scale (and offset)."""
        ...

    @property
    def levels(self) -> NDArray[np.float32]:
        """[codes], ascending: what each code stands for before scale and offset."""
        ...

    @property
    def outputs(self) -> tuple[tuple[str, int], ...]: ...
    def arguments(self) -> tuple[Any, ...]: ...


@dataclass(frozen=True, slots=True)
class Symmetric:
    """x ~ d * level: levels lo..hi, or IQ4's table. `anchors`: where the largest element lands."""

    size: int
    lo: int
    hi: int
    anchors: tuple[float, ...]
    rounds: int = 1
    table: bool = False
    scale: str = "float16"  # what d is stored as, of SHORTENED
    kernel = "fit_symmetric"

    @property
    def levels(self) -> NDArray[np.float32]:
        return IQ4_LEVELS if self.table else _whole(self.lo, self.hi)

    @property
    def outputs(self) -> tuple[tuple[str, int], ...]:
        return (("d", self.size),)

    def arguments(self) -> tuple[Any, ...]:
        lo, hi = np.float32(self.lo), np.float32(self.hi)
        search = (_floats(self.anchors), self.rounds)
        return self.size, lo, hi, self.table, *search, SHORTENED[self.scale]


@dataclass(frozen=True, slots=True)
class Affine:
    """x ~ d * code + m. `spans`: (steps that the range covers beyond `top`, moves of the start)."""

    size: int
    top: int
    spans: tuple[tuple[float, float], ...]
    rounds: int = 1
    kernel = "fit_affine"

    @property
    def levels(self) -> NDArray[np.float32]:
        return _whole(0, self.top)

    @property
    def outputs(self) -> tuple[tuple[str, int], ...]:
        return (("d", self.size), ("m", self.size))

    def arguments(self) -> tuple[Any, ...]:
        return self.size, np.float32(self.top), *_spans(self.top, self.spans), self.rounds


@dataclass(frozen=True, slots=True)
class ZeroPoint:
    """x ~ d * (code - zero), d not negative, zero a whole number; both 0..top. `spans` as above."""

    size: int
    top: int
    spans: tuple[tuple[float, float], ...]
    rounds: int = 1
    scale: str = "float16"
    kernel = "fit_zero_point"

    @property
    def levels(self) -> NDArray[np.float32]:
        return _whole(0, self.top)

    @property
    def outputs(self) -> tuple[tuple[str, int], ...]:
        return (("d", self.size), ("zero", self.size))

    def arguments(self) -> tuple[Any, ...]:
        search = (*_spans(self.top, self.spans), self.rounds)
        return self.size, np.float32(self.top), *search, SHORTENED[self.scale]


@dataclass(frozen=True, slots=True)
class SuperSymmetric:
    """x ~ d * scale * level, d shared by 256 columns, whole scales scale_lo..scale_hi."""

    size: int
    lo: int
    hi: int
    scale_lo: int
    scale_hi: int
    anchors: tuple[float, ...]
    rounds: int = 1
    refits: int = 2
    table: bool = False
    kernel = "fit_super_symmetric"

    @property
    def levels(self) -> NDArray[np.float32]:
        return IQ4_LEVELS if self.table else _whole(self.lo, self.hi)

    @property
    def outputs(self) -> tuple[tuple[str, int], ...]:
        return (("scales", self.size), ("d", SUPER))

    def arguments(self) -> tuple[Any, ...]:
        limits = (np.float32(self.scale_lo), np.float32(self.scale_hi))
        search = (_floats(self.anchors), self.rounds, self.refits)
        return self.size, np.float32(self.lo), np.float32(self.hi), self.table, *limits, *search


@dataclass(frozen=True, slots=True)
class SuperAffine:
    """x ~ d * scale * code - dmin * min, d and dmin shared by 256 columns."""

    size: int
    top: int
    scale_top: int
    spans: tuple[tuple[float, float], ...]
    rounds: int = 1
    refits: int = 2
    kernel = "fit_super_affine"

    @property
    def levels(self) -> NDArray[np.float32]:
        return _whole(0, self.top)

    @property
    def outputs(self) -> tuple[tuple[str, int], ...]:
        return (("scales", self.size), ("mins", self.size), ("d", SUPER), ("dmin", SUPER))

    def arguments(self) -> tuple[Any, ...]:
        limits = (np.float32(self.top), np.float32(self.scale_top))
        return self.size, *limits, *_spans(self.top, self.spans), self.rounds, self.refits


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """x ~ scale * level of an ascending table. No kernel searches the scales: the grid does, and
    what moves codes leaves them as they are."""

    size: int  # 0: the whole row
    levels: NDArray[np.float32]
    outputs: tuple[tuple[str, int], ...]
    kernel = "fit_table"

    def arguments(self) -> tuple[Any, ...]:
        raise TypeError("a table of levels is fitted by its grid, not by a kernel")


def _whole(first: int, last: int) -> NDArray[np.float32]:
    return np.arange(first, last + 1, dtype=np.float32)


def _floats(values: tuple[float, ...]) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def _spans(top: int, spans: tuple[tuple[float, float], ...]) -> tuple[NDArray[np.float32], ...]:
    return _floats(tuple(top + more for more, _ in spans)), _floats(tuple(s for _, s in spans))
