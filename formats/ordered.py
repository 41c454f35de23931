"""A sink that takes tensors in the plan's order, rows in order, and refuses to be misused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.target import OutputTensor, Plan
from qconvert.formats.tensor import QuantizedTensor

Rows = QuantizedTensor | NDArray[np.float32]
Put = Callable[[OutputTensor, Rows, int], None]
"""Stores some rows of a tensor, the first of which is row `start` of it: codes where it has a grid,
else floats [rows, cols], or [n] of a vector. Row order and `add` have been applied."""


class OrderedSink:
    """`formats.target.Sink` over a plan. Anything out of order is a `ValueError`."""

    def __init__(self, plan: Plan, put: Put) -> None:
        self._plan, self._put = plan, put
        self._next = 0  # the tensor that is being written
        self._rows = 0  # how many of its rows are

    def write(self, tensor: OutputTensor, rows: Rows) -> None:
        if self._next == len(self._plan.tensors):
            raise ValueError(f"{tensor.name}: all tensors have been written")
        due = self._plan.tensors[self._next]
        if tensor is not due and tensor.name != due.name:
            raise ValueError(f"{tensor.name} was written where {due.name} is due")
        total = due.shape[0] if len(due.shape) > 1 else 1
        count = rows.shape[0] if len(due.shape) > 1 else 1
        if self._rows + count > total or (due.row_order is not None and count != total):
            raise ValueError(f"{due.name}: rows {self._rows} + {count} of {total}")
        self._put(due, _as_stored(due, rows), self._rows)
        self._rows += count
        if self._rows == total:
            self._next, self._rows = self._next + 1, 0

    def finish(self) -> None:
        """`ValueError` unless every tensor has been written in full."""
        missing = self._plan.tensors[self._next :]
        if missing:
            raise ValueError(
                f"{len(missing)} tensors were not written, the first is {missing[0].name}"
            )


def _as_stored(due: OutputTensor, rows: Rows) -> Rows:
    if due.grid is not None:
        if not isinstance(rows, QuantizedTensor) or rows.grid != due.grid.name:
            raise ValueError(f"{due.name} wants codes of {due.grid.name}")
        return rows if due.row_order is None else rows.take_rows(due.row_order)
    if isinstance(rows, QuantizedTensor):
        raise ValueError(f"{due.name} wants float values")
    values = rows.reshape(due.shape) if len(due.shape) < 2 else rows
    if due.row_order is not None:
        values = values[due.row_order]
    return values + np.float32(due.add) if due.add else values
