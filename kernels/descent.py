"""Codes and parameters for the error of an output: feedback along columns, and descent on all.

Both work on a panel of columns that are processed together, and leave the columns beyond it to
matrix products of the caller. Everything is stored with columns first, [cols, rows], and rows are
independent of each other. The bodies are `descent_plain.py` (numpy, the truth) and `descent_cpu.py`
(numba, the same bits).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.kernels.bodies import Body, module
from qconvert.kernels.fit import (
    Affine,
    Fit,
    SuperAffine,
    SuperSymmetric,
    Symmetric,
    Table,
    ZeroPoint,
)
from qconvert.kernels.scales import SHORTENED

Floats = NDArray[np.float32]

ROWS_AT_ONCE = 16
KINDS: dict[type, int] = {
    Symmetric: 0, Affine: 1, SuperSymmetric: 2, SuperAffine: 3, ZeroPoint: 4, Table: 0,
}  # fmt: skip
"""How parameters are laid out: scale; scale and offset; whole sub-scales of a shared scale; the
same with whole sub-minima of a shared minimum; scale and whole zero point. Of a table, the scale
that its parameters stand for."""

NONE = np.empty(0, np.float32)


@dataclass(frozen=True, slots=True)
class Levels:
    """What codes stand for, in the form that the bodies search in."""

    low: np.float32
    high: np.float32
    middles: Floats  # between neighbouring levels; empty when the levels are whole numbers in a row
    gaps: Floats

    @classmethod
    def of(cls, levels: Floats) -> Levels:
        gaps = np.diff(levels)
        whole = bool((gaps == 1).all())
        middles = NONE if whole else (levels[1:] + levels[:-1]) / np.float32(2)
        return cls(levels[0], levels[-1], middles, NONE if whole else gaps)


@dataclass(slots=True)
class State:
    """Parameters of a panel, changed in place. Which are used, and for what, is said by `KINDS`.

    `scale`, `offset`: [groups, rows], offset also for zero points and minima; `d`, `dmin`: [rows].
    """

    scale: Floats
    offset: Floats = field(default_factory=lambda: NONE)
    d: Floats = field(default_factory=lambda: NONE)
    dmin: Floats = field(default_factory=lambda: NONE)


def feed_back(
    w: Floats,  # [cols, rows], of the panel
    factor: Floats,  # [cols, cols], upper triangular, of the panel
    scale: Floats,  # [groups, rows]
    offset: Floats | None,
    levels: Floats,
    *,
    body: Body = "cpu",
) -> tuple[NDArray[np.uint8], Floats]:
    """Round column after column; each error is taken out of the columns after it.

    `factor` is the upper Cholesky factor U of the inverse second moments, H^-1 = U'U. Returns the
    codes [cols, rows] and the errors over the factor's diagonal [cols, rows]: columns beyond the
    panel are to be lowered by U[panel, beyond]' @ errors. Source: GPTQ (Frantar et al. 2022).
    """
    run = module(body, "descent").feed_back
    cols, rows = w.shape
    known = Levels.of(levels)
    (w, scale, offset_), count = _padded(rows, w, scale, NONE if offset is None else offset)
    codes = np.empty((cols, count), np.uint8)
    errors = np.empty((cols, count), np.float32)
    size = cols // len(scale)
    run(
        w, np.ascontiguousarray(factor), size, scale, offset_, offset is not None,
        known.low, known.high, known.middles, known.gaps, codes, errors,
    )  # fmt: skip
    return codes[:, :rows], errors[:, :rows]


def descend(
    gradient: Floats,  # [cols, rows]: second moments @ (values - targets), of the panel's columns
    moments: Floats,  # [cols, cols], symmetric, of the panel
    chosen: Floats,  # [cols, rows]: level of each weight; changed in place
    state: State,  # changed in place
    search: Fit,
    *,
    sweeps: int = 1,
    parameters: bool = True,
    body: Body = "cpu",
) -> Floats:
    """Lower each row's error (v - t)' H (v - t) by moving one thing at a time to its best place.

    In turn: every code, then (`parameters`) each group's scale and offset, then the scales that
    groups share; all of them stay values that the file can hold, and no step raises the error. On a
    table (see `parameters_move`) only codes are moved.
    Returns the change of the values [cols, rows]; the gradient of other columns is the caller's.
    """
    run = module(body, "descent").descend
    cols, rows = gradient.shape
    known, kind = Levels.of(search.levels), KINDS[type(search)]
    fields = (chosen, state.scale, state.offset, state.d, state.dmin)
    (gradient, *padded), count = _padded(rows, gradient, *fields)
    change = np.empty((cols, count), np.float32)
    limits = limits_of(search)
    parameters = parameters and parameters_move(search)
    run(
        gradient, np.ascontiguousarray(moments), cols // len(state.scale), kind,
        known.low, known.high, known.middles, known.gaps,
        np.float32(limits[0]), np.float32(limits[1]), low_bits_of(search),
        *padded, change, sweeps, parameters,
    )  # fmt: skip
    for mine, found in zip(fields, padded, strict=True):
        if mine.size:
            mine[...] = found[..., :rows]
    return change[:, :rows]


def parameters_move(search: Fit) -> bool:
    """Whether descents and re-fits change parameters, or codes alone."""
    return not isinstance(search, Table)


def limits_of(search: Any) -> tuple[float, float]:
    """Range of the whole numbers among the parameters."""
    if isinstance(search, SuperSymmetric):
        return search.scale_lo, search.scale_hi
    if isinstance(search, SuperAffine):
        return 0, search.scale_top
    return (0, search.top) if isinstance(search, ZeroPoint) else (0, 0)


def low_bits_of(search: Any) -> int:
    """How scales are rounded when they are stored, as `kernels.scales.SHORTENED` says."""
    return SHORTENED[getattr(search, "scale", "float16")]


def _padded(rows: int, *arrays: Floats) -> tuple[list[Floats], int]:
    """Copies with whole tiles of rows; the rows added are zero. Empty arrays stay empty."""
    count = -(-rows // ROWS_AT_ONCE) * ROWS_AT_ONCE
    found = []
    for one in arrays:
        if not one.size:
            found.append(one)
            continue
        wide = np.zeros((*one.shape[:-1], count), np.float32)
        wide[..., :rows] = one
        found.append(wide)
    return found, count
