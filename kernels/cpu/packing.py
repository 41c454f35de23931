"""Packing and unpacking of blocks on a processor: eight codes at once, in numba (`planes.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.kernels.cpu import planes as fast
from qconvert.kernels.layouts import BlockLayout, Codes, Half, Numbers, Part, Run, Term
from qconvert.kernels.planes import pack_plane, unpack_plane

Array = NDArray[Any]
Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

AT_ONCE = 1 << 20  # weights: what lies between codes and bytes stays in the cache
NONE = np.empty(0, np.float32)


def pack(codes: Bytes, params: Mapping[str, Array], layout: BlockLayout) -> Bytes:
    rows, cols = codes.shape
    per_row = cols // layout.cols
    out = np.empty((rows * per_row, layout.nbytes), np.uint8)
    step = max(1, AT_ONCE // max(cols, 1))
    for start in range(0, rows, step):
        some = {name: values[start : start + step] for name, values in params.items()}
        target = out[start * per_row : (start + step) * per_row]
        for at, part in layout.placed:
            _put(target[:, at : at + part.nbytes], codes[start : start + step], some, part)
    return out.reshape(rows, layout.row_bytes(cols))


def unpack(packed: Bytes, layout: BlockLayout, cols: int) -> tuple[Bytes, dict[str, Array]]:
    rows, per_row = packed.shape[0], cols // layout.cols
    blocks = packed.reshape(rows * per_row, layout.nbytes)
    codes: Bytes | None = None
    found: dict[str, Array] = {}
    for at, part in layout.placed:
        some = blocks[:, at : at + part.nbytes]
        match part:
            case Half(name):
                found[name] = _flat(some).view(np.float16)
            case Codes():
                plane = _codes(some, part)
                codes = plane if codes is None else np.bitwise_or(codes, plane, out=codes)
            case Numbers():
                found |= _numbers(some, part)
    assert codes is not None
    params = {
        name: found[name].reshape(rows, per_row * count)
        for name, (count, _) in layout.parameters.items()
    }
    return codes.reshape(rows, cols), params


def dequantize(packed: Bytes, layout: BlockLayout, cols: int) -> Floats:
    rows, groups = packed.shape[0], cols // layout.size
    out = np.empty((rows * groups, layout.size), np.float32)
    levels = np.array(layout.levels, np.float32)
    step = max(1, AT_ONCE // max(cols, 1))
    for start in range(0, rows, step):
        codes, params = unpack(packed[start : start + step], layout, cols)
        scale = _line(params, layout.scale, groups)
        offset = NONE if layout.offset is None else _line(params, layout.offset, groups)
        target = out[start * groups : (start + step) * groups]
        fast.on_lines(codes.reshape(target.shape), levels, scale, offset, target)
    return out.reshape(rows, cols)


def _put(target: Bytes, codes: Bytes, params: Mapping[str, Array], part: Part) -> None:
    """One part of blocks, [blocks, nbytes]."""
    match part:
        case Half(name):
            _copy(target, np.ascontiguousarray(params[name]))
        case Codes(plane, _, flip):
            found = pack_plane(np.ascontiguousarray(codes).reshape(-1), plane)
            if flip:
                found ^= np.uint8(flip)
            _copy(target, found)
        case Numbers():
            stored = np.empty((len(target), part.total), np.uint8)
            for i, name in enumerate(part.names):
                _copy(stored[:, part.count * i :][:, : part.count], params[name])
            if part.bias:
                stored += np.uint8(part.bias)
            if not _in_words(part):
                fast.pack_numbers(stored, _table(part.runs), target)
                return
            for at, plane in part.planes:
                _copy(
                    target[:, at:][:, : part.plane_bytes(plane)],
                    pack_plane(stored.reshape(-1), plane),
                )


def _codes(packed: Bytes, part: Codes) -> Bytes:
    """The bits of these codes, flat."""
    flat = _flat(packed)
    return unpack_plane(flat ^ np.uint8(part.flip) if part.flip else flat, part.plane)


def _numbers(packed: Bytes, part: Numbers) -> dict[str, Array]:
    stored = np.zeros((len(packed), part.total), np.uint8)
    if _in_words(part):
        for at, plane in part.planes:
            some = _flat(packed[:, at:][:, : part.plane_bytes(plane)])
            stored |= unpack_plane(some, plane).reshape(stored.shape)
    else:
        fast.unpack_numbers(packed, _table(part.runs), stored)
    if part.bias:
        stored -= np.uint8(part.bias)
    each = (stored[:, part.count * i :][:, : part.count] for i in range(len(part.names)))
    kind = np.int8 if part.signed else np.uint8
    return {name: _flat(one).view(kind) for name, one in zip(part.names, each, strict=True)}


def _in_words(part: Numbers) -> bool:
    """Whether the bodies of planes, which take eight bytes at once, can take these."""
    return bool(part.planes) and all(plane.stride % 8 == 0 for _, plane in part.planes)


def _copy(target: Bytes, found: Array) -> None:
    """`found` into runs of bytes [blocks, n]: as one item of n bytes, since numpy copies short runs
    one loop a run."""
    item = np.dtype((np.void, target.shape[1]))
    target.view(item)[:] = np.ascontiguousarray(found).reshape(-1).view(item)[:, None]


def _flat(runs: Bytes) -> Bytes:
    """Runs of bytes [blocks, n], after one another."""
    item = np.dtype((np.void, runs.shape[1]))
    return np.ascontiguousarray(runs.view(item)).reshape(-1).view(np.uint8)


def _table(runs: tuple[Run, ...]) -> NDArray[np.int64]:
    rows = [(run.first, run.count, run.at, run.lift, run.width, run.shift) for run in runs]
    return np.array(rows, np.int64)


def _line(params: Mapping[str, Array], term: Term, groups: int) -> Floats:
    """The term of each group, rows after one another: float32 [rows * groups]."""
    half = params[term.half].astype(np.float32)
    line: Floats = np.repeat(half, groups // max(half.shape[1], 1), axis=1)
    with np.errstate(all="ignore"):  # bytes of no model: NaN and infinite halves
        if term.whole is not None:
            line *= params[term.whole]
        return (-line if term.minus else line).reshape(-1)
