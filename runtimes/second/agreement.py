"""Two readings of the same weights, and a file beside the work folder that it was written from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.refusal import Refused
from qconvert.formats.source import Source, SourceTensor
from qconvert.runtimes.findings import Finding

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]
Values = Callable[[int, int], Floats]
"""Rows [start, stop); a vector is one row."""

ULPS = 4
"""Units in the last place by which decoded codes may differ: NVFP4 has its scale of the tensor as a
largest magnitude in a work folder, and as a multiplier or divisor in a file, each made of the other
with a rounding. Of all others the formulas are exact in float32, or the same. A code that is off by
one moves a value by thousands of such units, the last bit of a float16 scale by 8192."""

AT_ONCE = 1 << 22  # weights that are compared at a time


@dataclass(slots=True)
class Tally:
    """Where the values of one tensor differ."""

    values: int = 0
    differ: int = 0
    first: tuple[int, int] = (0, 0)  # row, column
    last: int = 0  # row

    def add(self, differ: Flags, row: int) -> None:
        """`differ` [rows, cols], the first of which is row `row`."""
        self.values += differ.size
        found = np.flatnonzero(differ)
        if not len(found):
            return
        cols = differ.shape[1]
        if not self.differ:
            self.first = row + int(found[0]) // cols, int(found[0]) % cols
        self.differ += len(found)
        self.last = row + int(found[-1]) // cols

    def told(self, beside: str) -> str:
        """ "12 of 331776 values differ from the work folder, first at row 3, column 17; ..." """
        row, column = self.first
        one = self.differ == 1
        return (
            f"{self.differ} of {self.values} values {'differs' if one else 'differ'} from {beside},"
            f" first at row {row}, column {column}; rows {row} to {self.last}"
        )


def disagreements(ours: Mapping[str, Floats], second: Mapping[str, Floats]) -> list[Finding]:
    """What `Reader.weights` and `second_weights` read differently, by checkpoint name: values, a
    shape, a tensor that only one of them finds, or that only one of them can decode."""
    found = []
    mine, theirs = set(ours), set(second)  # `in` of a lazy mapping would decode
    for name in dict.fromkeys([*ours, *second]):
        if name not in theirs:
            problem = f"{name}: a second reader does not find it in the file"
        elif name not in mine:
            problem = f"{name}: only a second reader finds it in the file"
        else:
            problem = _disagreement(name, ours, second)
        if problem:
            found.append(Finding("bytes", name, problem))
    return found


def _disagreement(name: str, ours: Mapping[str, Floats], second: Mapping[str, Floats]) -> str:
    mine, refused = _read(ours, name)
    theirs, other = _read(second, name)
    if mine is None and theirs is None:
        return f"{name} cannot be decoded: {refused}"
    if mine is None or theirs is None:
        who = "qconvert's reader" if mine is None else "a second reader"
        return f"{name}: {who} cannot decode it: {refused or other}"
    if mine.shape != theirs.shape:
        return f"{name} is {list(mine.shape)}, and {list(theirs.shape)} to a second reader"
    tally = Tally()
    for row, left, right in _chunks(mine, theirs):
        tally.add(_apart(left, right, ULPS), row)
    return f"{name}: {tally.told('what a second reader decodes')}" if tally.differ else ""


def _read(weights: Mapping[str, Floats], name: str) -> tuple[Floats | None, str]:
    try:
        return weights[name], ""
    except Refused as refused:
        return None, "; ".join(reason.problem for reason in refused.reasons)


def _chunks(left: Floats, right: Floats) -> Iterator[tuple[int, Floats, Floats]]:
    """(first row, rows of one, the same rows of the other)"""
    left, right = np.atleast_2d(left), np.atleast_2d(right)
    step = max(1, AT_ONCE // max(left.shape[1], 1))
    for row in range(0, len(left), step):
        yield row, left[row : row + step], right[row : row + step]


def _apart(left: Floats, right: Floats, ulps: int = 0) -> Flags:
    """Where two arrays differ: 0 and -0 do not, nor do NaN and NaN."""
    differ: Flags = left != right
    if not differ.any():
        return differ
    differ &= ~(np.isnan(left) & np.isnan(right))
    if ulps:
        a, b = left[differ], right[differ]
        with np.errstate(invalid="ignore", over="ignore"):
            differ[differ] = ~(np.abs(a - b) <= ulps * np.spacing(np.maximum(np.abs(a), np.abs(b))))
    return differ


class Kept(Source, Protocol):
    """A work folder: a model with the codes that were made of it. `qconvert.engine.bundle`."""

    def grids_of(self, name: str) -> Sequence[str]: ...
    def in_float(self, name: str) -> bool: ...
    def decoded(self, name: str, start: int, stop: int, grid: str | None = None) -> Floats: ...


def differences(ours: Mapping[str, Floats], kept: Kept) -> list[Finding]:
    """What a file holds otherwise than the work folder `kept` that it was written from; `ours` is
    best `Reader.weights(kept)`: a rotation may have untied a head.

    Coded tensors are the same to the bit (NVFP4 within `ULPS`). What stays in float may have been
    rounded once, to the type that it is stored as, the same for all of a tensor; a norm with one
    added to it first. What the work folder keeps in float outside the blocks a target may have
    quantized by itself: then most of its values differ, and none is told of.
    """
    found, names = [], set(ours)
    for tensor in kept.tensors:
        if tensor.name not in names:
            if tensor.role != "head":  # of a model that ties it: the file has it under no name
                problem = f"{tensor.name} is in the work folder, and not in the file"
                found.append(Finding("bytes", tensor.name, problem))
            continue
        values, refused = _read(ours, tensor.name)
        problem = (
            f"cannot be decoded: {refused}" if values is None else _moved(values, tensor, kept)
        )
        if problem:
            found.append(Finding("bytes", tensor.name, f"{tensor.name}: {problem}"))
    return found


def _moved(values: Floats, tensor: SourceTensor, kept: Kept) -> str:
    if tensor.transposed and values.ndim == 2:
        values = values.T
    if values.shape != tensor.shape:
        return f"{list(values.shape)} in the file, {list(tensor.shape)} in the work folder"
    least: Tally | None = None
    for form, ulps in _forms(tensor, kept):
        tally = _tally(values, form, ulps, tensor)
        if not tally.differ:
            return ""
        least = tally if least is None or tally.differ < least.differ else least
    assert least is not None
    outside = tensor.block is None and values.ndim == 2 and kept.in_float(tensor.name)
    if outside and 2 * least.differ > least.values:
        return ""
    return least.told("the work folder")


def _tally(values: Floats, wanted: Values, ulps: int, tensor: SourceTensor) -> Tally:
    tally = Tally()
    rows, cols = (1, *tensor.shape)[-2:]
    whole = values.reshape(rows, cols)
    step = max(1, AT_ONCE // max(cols, 1))
    for row in range(0, rows, step):
        stop = min(row + step, rows)
        tally.add(_apart(whole[row:stop], wanted(row, stop).reshape(-1, cols), ulps), row)
    return tally


def _forms(tensor: SourceTensor, kept: Kept) -> Iterator[tuple[Values, int]]:
    """All that a file may hold of a tensor of the work folder, the likeliest first, and by how many
    units in the last place it may be off."""
    for grid in kept.grids_of(tensor.name):
        yield partial(_decoded, kept, tensor, grid), ULPS
    if not kept.in_float(tensor.name):
        return
    for more in (0.0, 1.0) if tensor.role.endswith("norm") else (0.0,):
        for rounded in ROUNDED:
            yield partial(_floats, kept, tensor, np.float32(more), rounded), 0


def _decoded(kept: Kept, tensor: SourceTensor, grid: str, start: int, stop: int) -> Floats:
    return kept.decoded(tensor.name, start, stop, grid)


def _floats(
    kept: Kept,
    tensor: SourceTensor,
    more: np.float32,
    rounded: Callable[[Floats], Floats],
    start: int,
    stop: int,
) -> Floats:
    values = kept.rows(tensor, start, stop)
    return rounded(values + more) - more if more else rounded(values)


def _same(values: Floats) -> Floats:
    return values


def _half(values: Floats) -> Floats:
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float32)


def _brain(values: Floats) -> Floats:
    """The nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + np.uint32(0x7FFF) + odd) & np.uint32(0xFFFF0000)).view(np.float32)


ROUNDED = (_same, _brain, _half)
"""What is left of float32 values in each type that floats are stored in."""
