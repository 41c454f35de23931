"""The four ways in which GGUF stores the scale and offset of a group of columns.

Each says what stored parameters stand for (`lines`, in float32 as every decoder of the format
computes it) and which stored parameters are nearest to wanted lines (`store`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.grid import Lines
from qconvert.formats.nearest import inverse
from qconvert.kernels.layouts import Term
from qconvert.kernels.searches import (
    SUPER,
    Affine,
    Fit,
    SuperAffine,
    SuperSymmetric,
    Symmetric,
)

Floats = NDArray[np.float32]
Params = Mapping[str, NDArray[Any]]
Dtypes = Mapping[str, np.dtype[Any]]

_F16, _I8, _U8 = np.dtype(np.float16), np.dtype(np.int8), np.dtype(np.uint8)


class Parameters(Protocol):
    """How one type stores its lines. Arrays are [rows, groups] or [rows, super-blocks]."""

    @property
    def search(self) -> Fit: ...
    @property
    def stored(self) -> Dtypes:
        """dtype of each parameter in the neutral form, in the order of the file's documents."""
        ...

    @property
    def scale(self) -> Term:
        """What a level is multiplied by."""
        ...

    @property
    def offset(self) -> Term | None:
        """What is added to that."""
        ...

    def lines(self, params: Params) -> Lines: ...
    def store(self, lines: Lines) -> Mapping[str, Floats]:
        """Values that `stored` holds exactly; infinite where a scale is beyond float16."""
        ...


@dataclass(frozen=True, slots=True)
class Scale:
    """d * level"""

    search: Symmetric
    stored: ClassVar[Dtypes] = {"d": _F16}
    scale: ClassVar[Term] = Term("d")
    offset: ClassVar[Term | None] = None

    def lines(self, params: Params) -> Lines:
        return _lines(self, params)

    def store(self, lines: Lines) -> Mapping[str, Floats]:
        return {"d": _half(lines.scale)}


@dataclass(frozen=True, slots=True)
class ScaleAndOffset:
    """d * code + m"""

    search: Affine
    stored: ClassVar[Dtypes] = {"d": _F16, "m": _F16}
    scale: ClassVar[Term] = Term("d")
    offset: ClassVar[Term | None] = Term("m")

    def lines(self, params: Params) -> Lines:
        return _lines(self, params)

    def store(self, lines: Lines) -> Mapping[str, Floats]:
        assert lines.offset is not None
        return {"d": _half(lines.scale), "m": _half(lines.offset)}


@dataclass(frozen=True, slots=True)
class SuperScale:
    """d * scale * level, d shared by a super-block, whole scales of both signs"""

    search: SuperSymmetric
    stored: ClassVar[Dtypes] = {"d": _F16, "scales": _I8}
    scale: ClassVar[Term] = Term("d", "scales")
    offset: ClassVar[Term | None] = None

    def lines(self, params: Params) -> Lines:
        return _lines(self, params)

    def store(self, lines: Lines) -> Mapping[str, Floats]:
        d, scales = _factored(
            lines.scale, self.search.size, self.search.scale_lo, self.search.scale_hi
        )
        return {"d": d, "scales": scales}


@dataclass(frozen=True, slots=True)
class SuperScaleAndOffset:
    """d * scale * code - dmin * min, d and dmin shared by a super-block, nothing negative.

    So an offset above zero cannot be stored: such a line starts at zero and keeps its upper end.
    """

    search: SuperAffine
    stored: ClassVar[Dtypes] = {"d": _F16, "dmin": _F16, "scales": _U8, "mins": _U8}
    scale: ClassVar[Term] = Term("d", "scales")
    offset: ClassVar[Term | None] = Term("dmin", "mins", minus=True)

    def lines(self, params: Params) -> Lines:
        return _lines(self, params)

    def store(self, lines: Lines) -> Mapping[str, Floats]:
        assert lines.offset is not None
        size, most = self.search.size, self.search.scale_top
        above = np.maximum(lines.offset, 0)
        scale = np.maximum(lines.scale + above / np.float32(self.search.top), 0)
        d, scales = _factored(scale, size, 0, most)
        dmin, mins = _factored(np.maximum(-lines.offset, 0), size, 0, most)
        return {"d": d, "dmin": dmin, "scales": scales, "mins": mins}


def _lines(kind: Parameters, params: Params) -> Lines:
    offset = None if kind.offset is None else _term(params, kind.offset)
    return Lines(_term(params, kind.scale), offset)


def _term(params: Params, term: Term) -> Floats:
    """[rows, groups], in float32"""
    half: Floats = params[term.half].astype(np.float32)
    if term.whole is None:
        return half
    whole = params[term.whole]
    product: Floats = np.repeat(half, whole.shape[1] // max(half.shape[1], 1), axis=1)
    product *= whole
    return -product if term.minus else product


def _half(values: Floats) -> Floats:
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float32)


def _factored(wanted: Floats, size: int, lo: int, hi: int) -> tuple[Floats, Floats]:
    """d [rows, super-blocks] in float16 and whole numbers lo..hi [rows, groups] whose products
    are nearest to `wanted` [rows, groups], by the sum of squares over a super-block.

    The element of largest magnitude goes onto every whole number in turn, so products that are
    already of this form are found again exactly; then d is fitted to the whole numbers.
    """
    rows = wanted.shape[0]
    v = wanted.reshape(rows, -1, SUPER // size)
    extreme = np.take_along_axis(v, np.abs(v).argmax(-1)[..., None], -1)
    d = _half(extreme / np.float32(lo or hi))  # the smallest: infinite only if all of them are
    best = (np.full_like(d, np.inf), d, np.zeros_like(v))
    for whole in (n for n in range(lo, hi + 1) if n):
        best = _better(v, _half(extreme / np.float32(whole)), lo, hi, best)
    for _ in range(2):
        _, d, n = best
        squares = np.square(n).sum(-1, keepdims=True)
        d = np.where(squares > 0, (v * n).sum(-1, keepdims=True) / np.maximum(squares, 1), d)
        best = _better(v, _half(d), lo, hi, best)
    return best[1].reshape(rows, -1), best[2].reshape(rows, -1)


Found = tuple[Floats, Floats, Floats]  # squared error, d, whole numbers


def _better(v: Floats, d: Floats, lo: int, hi: int, best: Found) -> Found:
    """The better of `best` and of `d` with the whole numbers nearest for it, each super-block."""
    n = np.clip(np.rint(v * inverse(d)), lo, hi)
    with np.errstate(invalid="ignore"):
        error = np.square(v - d * n).sum(-1, keepdims=True)
    better = error < best[0]  # never so where d is infinite
    now = (error, d, n)
    first, second, third = (np.where(better, new, old) for new, old in zip(now, best, strict=True))
    return first, second, third
