"""Codes and parameters for the error of an output: feedback along columns, and descent on all.

Both work on a panel of columns that are processed together, and leave the columns beyond it to
matrix products of the caller. Everything is stored with columns first, [cols, rows], and rows are
independent of each other. Arrays are numpy's, or torch tensors of one device, all of one kind: what
comes back is of that kind too. All bodies give the same bits, the sign of a zero aside.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from qconvert.kernels.bodies import Body, body_for, module
from qconvert.kernels.scales import SHORTENED
from qconvert.kernels.searches import (
    Affine,
    Fit,
    SuperAffine,
    SuperSymmetric,
    Symmetric,
    Table,
    ZeroPoint,
)

Floats = NDArray[np.float32]
Array: TypeAlias = Any
"""float32, numpy's or torch's; torch is not imported where none comes in."""

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
    What is not used is empty, of whatever kind.
    """

    scale: Array
    offset: Array = field(default_factory=lambda: NONE)
    d: Array = field(default_factory=lambda: NONE)
    dmin: Array = field(default_factory=lambda: NONE)


def feed_back(
    w: Array,  # [cols, rows], of the panel
    factor: Array,  # [cols, cols], upper triangular, of the panel
    scale: Array,  # [groups, rows]
    offset: Array | None,
    levels: Floats,  # numpy's, as a grid states them
    *,
    body: Body | None = None,
) -> tuple[Array, Array]:
    """Round column after column; each error is taken out of the columns after it.

    `factor` is the upper Cholesky factor U of the inverse second moments, H^-1 = U'U; what it has
    below the diagonal is not read. Returns the codes [cols, rows], uint8, and the errors over the
    factor's diagonal [cols, rows]: columns beyond the panel are to be lowered by
    U[panel, beyond]' @ errors. Source: GPTQ (Frantar et al. 2022).
    """
    chosen, rows = _body(w, body), w.shape[1]
    known, size = Levels.of(levels), len(w) // len(scale)
    given = (w, factor, scale, NONE if offset is None else offset)
    w_, factor_, scale_, offset_ = _for_body(chosen, rows, *given, tiled=(True, False, True, True))
    codes, errors = _like(w_, "uint8"), _like(w_, "float32")
    module(chosen, "descent").feed_back(
        w_, factor_, size, scale_, offset_, offset is not None,
        known.low, known.high, known.middles, known.gaps, codes, errors,
    )  # fmt: skip
    return _as_given(codes, w)[:, :rows], _as_given(errors, w)[:, :rows]


def descend(
    gradient: Array,  # [cols, rows]: second moments @ (values - targets), of the panel's columns
    moments: Array,  # [cols, cols], symmetric, of the panel
    chosen: Array,  # [cols, rows]: level of each weight; changed in place
    state: State,  # changed in place
    search: Fit,
    *,
    sweeps: int = 1,
    parameters: bool = True,
    body: Body | None = None,
) -> Array:
    """Lower each row's error (v - t)' H (v - t) by moving one thing at a time to its best place.

    In turn: every code, then (`parameters`) each group's scale and offset, then the scales that
    groups share; all of them stay values that the file can hold, and no step raises the error. On a
    table (see `parameters_move`) only codes are moved.
    Returns the change of the values [cols, rows]; the gradient of other columns is the caller's.
    """
    which, (cols, rows) = _body(gradient, body), gradient.shape
    known, kind = Levels.of(search.levels), KINDS[type(search)]
    changed = (chosen, state.scale, state.offset, state.d, state.dmin)
    given = (moments, gradient, *changed)
    tiled = (False, *(True for _ in given[1:]))
    moments_, gradient_, *found = _for_body(which, rows, *given, tiled=tiled, changed=2)
    change = _like(gradient_, "float32")
    limits = limits_of(search)
    module(which, "descent").descend(
        gradient_, moments_, cols // len(state.scale), kind,
        known.low, known.high, known.middles, known.gaps,
        np.float32(limits[0]), np.float32(limits[1]), low_bits_of(search),
        *found, change, sweeps, parameters and parameters_move(search),
    )  # fmt: skip
    for mine, new in zip(changed, found, strict=True):
        if len(mine):
            mine[...] = _as_given(new, mine)[..., :rows]
    return _as_given(change, gradient)[:, :rows]


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


def _body(given: Array, asked: Body | None) -> Body:
    if isinstance(given, np.ndarray):
        return asked or "cpu"
    return body_for(given.device, asked)


def _for_body(
    body: Body, rows: int, *arrays: Array, tiled: tuple[bool, ...], changed: int | None = None
) -> list[Array]:
    """Contiguous, and those from `changed` on copies: tensors, or for the body of a processor
    numpy's float32, where rows of those that are `tiled` fill whole tiles, in copies too."""
    if body == "cpu":
        plain = [one if isinstance(one, np.ndarray) else one.numpy() for one in arrays]
        return [
            _padded(rows, one) if wide else np.ascontiguousarray(one)
            for one, wide in zip(plain, tiled, strict=True)
        ]
    import torch

    tensors = [torch.from_numpy(one) if isinstance(one, np.ndarray) else one for one in arrays]
    kept = len(tensors) if changed is None else changed
    copies = [one.clone(memory_format=torch.contiguous_format) for one in tensors[kept:]]
    return [*(one.contiguous() for one in tensors[:kept]), *copies]


def _padded(rows: int, one: Floats) -> Floats:
    """A copy with whole tiles of rows; the rows added are zero. An empty array stays empty."""
    if not one.size:
        return one
    wide = np.zeros((*one.shape[:-1], -(-rows // ROWS_AT_ONCE) * ROWS_AT_ONCE), np.float32)
    wide[..., :rows] = one
    return wide


def _like(one: Array, kind: str) -> Array:
    """Of the shape of `one`, not filled, on its device."""
    if isinstance(one, np.ndarray):
        return np.empty(one.shape, kind)
    import torch

    return torch.empty_like(one, dtype=getattr(torch, kind))


def _as_given(found: Array, given: Array) -> Array:
    """`found` as numpy's or torch's, as `given` is; nothing is copied."""
    if isinstance(found, np.ndarray) == isinstance(given, np.ndarray):
        return found
    if isinstance(given, np.ndarray):
        return found.numpy()
    import torch

    return torch.from_numpy(found)
