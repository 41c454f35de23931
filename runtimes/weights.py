"""Tensor by tensor: how far a decoded output is from its source, and do its bits explain that?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.source import Source, SourceTensor
from qconvert.formats.target import Reader

ROWS = 4096  # rows of the source read at a time

LIMITS = ((15.0, 0.01), (8.0, 0.05), (6.0, 0.12), (5.0, 0.25), (4.0, 0.4), (3.0, 0.7), (0.0, 0.9))
"""(stored bits per weight from, largest error of a row relative to the row). Rounding stays under
half of it on real models; a row of another tensor, or in another place, is off by 1.4."""

VECTOR_LIMIT = 0.01  # norms and biases stay in float


@dataclass(frozen=True, slots=True)
class TensorError:
    """Distance of one tensor from the source, relative to the source (root of summed squares)."""

    name: str
    error: float  # over the whole tensor
    worst_row: float  # the largest over its rows
    row: int  # which one that is
    limit: float  # what `worst_row` may be at the output's bits

    @property
    def ok(self) -> bool:
        return self.worst_row <= self.limit  # False for NaN


class WeightCheck:
    """Collects a `TensorError` for each tensor that it is shown."""

    def __init__(self, source: Source, reader: Reader) -> None:
        self._source = source
        self._tensors: Mapping[str, SourceTensor] = {t.name: t for t in source.tensors}
        self._limit = matrix_limit(reader)
        self.errors: list[TensorError] = []

    def __call__(self, name: str, value: NDArray[np.float32]) -> None:
        """`value`: decoded, in the orientation in which the checkpoint stores it."""
        tensor = self._tensors[name]
        vector = len(tensor.shape) == 1
        rows = value.reshape(1, -1) if vector else value.T if tensor.transposed else value
        difference, size = np.empty(len(rows)), np.empty(len(rows))
        for start in range(0, len(rows), ROWS):
            stop = min(start + ROWS, len(rows))
            there = self._source.rows(tensor, start, stop).reshape(stop - start, -1)
            difference[start:stop] = np.square(rows[start:stop] - there, dtype=np.float64).sum(1)
            size[start:stop] = np.square(there, dtype=np.float64).sum(1)
        limit = VECTOR_LIMIT if vector else self._limit
        self.errors.append(_error(name, difference, size, limit))


def matrix_limit(reader: Reader) -> float:
    """The limit of the coarsest type among the output's matrices."""
    matrices = [t for t in reader.tensors.values() if len(t.shape) > 1]
    bits = min((8 * t.nbytes / math.prod(t.shape) for t in matrices), default=32.0)
    return next(limit for least, limit in LIMITS if bits >= least)


def _error(
    name: str, difference: NDArray[np.float64], size: NDArray[np.float64], limit: float
) -> TensorError:
    """Rows that are nearly zero are measured against a hundredth of the usual row instead: a file's
    16-bit scales cannot follow them, and nothing is lost by it."""
    usual = size.mean()
    rows = np.sqrt(difference / np.maximum(size, max(usual * 1e-4, 1e-30)))
    whole = math.sqrt(difference.sum() / max(size.sum(), 1e-30))
    row = int(np.argmax(rows))  # NaN counts as largest
    return TensorError(name, whole, float(rows[row]), row, limit)
