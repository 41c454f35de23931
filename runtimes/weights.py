"""Tensor by tensor: how far a decoded output is from its source, and do its bits explain that?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.source import Source, SourceTensor
from qconvert.formats.target import Reader
from qconvert.runtimes.reference import TIED_HEAD

ROWS = 4096  # rows of the source read at a time

LIMITS = ((15.0, 0.01), (8.0, 0.4), (5.0, 0.6), (4.0, 0.75), (0.0, 0.9))
"""(stored bits per weight from, largest error of a row relative to the row). Rounding to nearest
stays far below it. Error feedback moves weights further, where what linears read lets it: 0.27 of a
row was met in FP8, and 0.53 with 4 bits in groups of 128. A row of another tensor, or in another
place, is off by 1.4, a row that is missing by 1."""

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


READ_BY: Mapping[str, tuple[str, ...]] = {
    "attn_norm": ("attn_q", "attn_k", "attn_v", "attn_qkv"),
    "ffn_norm": ("ffn_gate", "ffn_up", "ffn_gate_up"),
    "final_norm": ("head",),
}
"""A norm -> the linears of its block that read what it gives."""

NORM_OFFSETS = (0.0, 1.0)  # what a norm multiplies by: its weight, or that plus one (Gemma's)
FOLDED = "norms and linears are scaled or rotated against each other (smoothing, rotation):"
UP_TO_SCALE = (
    f"{FOLDED} tensors are compared with the source up to a factor for each row and column"
)
NOT_COMPARED = f"{FOLDED} tensors cannot be compared with the source one by one; the logits decide"


@dataclass(slots=True)
class _Norm:
    """A norm that is not the source's: what its readers would be multiplied with in return."""

    at: int  # in `plain`
    factors: Sequence[NDArray[np.float64]]  # by column; one for each way to store a norm
    explained: bool = False


class WeightCheck:
    """Looks at each tensor that it is shown, norms before the linears that read them."""

    def __init__(self, source: Source, reader: Reader) -> None:
        self._source = source
        self._tensors = _by_name(source)
        self._limit = matrix_limit(reader)
        self._plain: list[TensorError] = []
        self._scaled: dict[int, TensorError] = {}  # of those that are not ok as they are
        self._norms: dict[tuple[int | None, str], _Norm] = {}
        self._matrices = 0

    def __call__(self, name: str, value: NDArray[np.float32]) -> None:
        """`value`: decoded, in the orientation in which the checkpoint stores it."""
        tensor = self._tensors[name]
        vector = len(tensor.shape) == 1
        rows = value.reshape(1, -1) if vector else value.T if tensor.transposed else value
        plain = _error(name, *self._compare(tensor, rows), VECTOR_LIMIT if vector else self._limit)
        self._plain.append(plain)
        if vector:
            if tensor.role in READ_BY and tensor.part == "weight" and not plain.ok:
                self._keep(tensor, rows[0])
            return
        self._matrices += 1
        norms = [
            norm
            for (block, role), norm in self._norms.items()
            if block == tensor.block and tensor.role in READ_BY[role]
        ]
        if plain.ok and not norms:
            return
        columns = self._columns(tensor, rows)
        for norm in norms:
            norm.explained |= any(_explains(factor, columns) for factor in norm.factors)
        if not plain.ok and columns.any():
            at = len(self._plain) - 1
            compared = self._compare(tensor, rows, columns)
            self._scaled[at] = _error(name, *compared, self._limit)

    @property
    def errors(self) -> list[TensorError]:
        """Of every tensor; of none where the file is that of a rotated model."""
        if self.note == NOT_COMPARED:
            return []
        if not self.note:
            return list(self._plain)
        found = [self._scaled.get(at, error) for at, error in enumerate(self._plain)]
        explained = {norm.at for norm in self._norms.values() if norm.explained}
        return [error for at, error in enumerate(found) if at not in explained]

    @property
    def note(self) -> str:
        """What was done about a file whose norms are not the source's; empty: nothing had to be."""
        if not self._norms:
            return ""
        far = sum(not error.ok for error in self._scaled.values())
        if 2 * far > self._matrices and all(not norm.explained for norm in self._norms.values()):
            return NOT_COMPARED
        return UP_TO_SCALE if any(norm.explained for norm in self._norms.values()) else ""

    def _keep(self, tensor: SourceTensor, value: NDArray[np.float32]) -> None:
        there = self._source.rows(tensor, 0, 1).reshape(-1).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            factors = [(there + offset) / (value + offset) for offset in NORM_OFFSETS]
        finite = [factor for factor in factors if np.isfinite(factor).all()]
        self._norms[tensor.block, tensor.role] = _Norm(len(self._plain) - 1, finite)

    def _pieces(
        self, tensor: SourceTensor, rows: NDArray[np.float32]
    ) -> Iterator[tuple[slice, NDArray[np.float32], NDArray[np.float32]]]:
        """(which rows, as decoded, as in the source), ROWS at a time."""
        for start in range(0, len(rows), ROWS):
            stop = min(start + ROWS, len(rows))
            there = self._source.rows(tensor, start, stop).reshape(stop - start, -1)
            yield slice(start, stop), rows[start:stop], there

    def _compare(
        self,
        tensor: SourceTensor,
        rows: NDArray[np.float32],
        columns: NDArray[np.float64] | None = None,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Per row: the squared difference, and the squared size of the source. With `columns`, the
        source's columns are multiplied with them first, and its rows with what fits best."""
        difference, size = np.empty(len(rows)), np.empty(len(rows))
        for at, here, there in self._pieces(tensor, rows):
            if columns is not None:
                there = there * columns.astype(np.float32)
            size[at] = np.square(there, dtype=np.float64).sum(1)
            if columns is None:
                difference[at] = np.square(here - there, dtype=np.float64).sum(1)
            else:  # what no factor takes away; all of it where the row is zero
                own = np.square(here, dtype=np.float64).sum(1)
                cross = np.multiply(here, there, dtype=np.float64).sum(1)
                difference[at] = size[at] - np.square(cross) / np.maximum(own, 1e-30)
        return difference, size

    def _columns(self, tensor: SourceTensor, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """By column: the factor from the source that fits best, by least squares."""
        cross, own = np.zeros(rows.shape[1]), np.zeros(rows.shape[1])
        for _, here, there in self._pieces(tensor, rows):
            cross += np.multiply(here, there, dtype=np.float64).sum(0)
            own += np.square(there, dtype=np.float64).sum(0)
        return np.asarray(cross / np.maximum(own, 1e-30))


def _by_name(source: Source) -> dict[str, SourceTensor]:
    """The source's tensors; what a tied head stands for is the embedding."""
    found = {tensor.name: tensor for tensor in source.tensors}
    if source.tied:
        table = next(tensor for tensor in source.tensors if tensor.role == "embedding")
        found.setdefault(TIED_HEAD, table)
    return found


def _explains(factor: NDArray[np.float64], columns: NDArray[np.float64]) -> bool:
    """Whether a linear's columns have grown by `factor` rather than not at all: a norm that was
    changed alone is a fault."""
    off = float(np.square(columns / factor - 1).mean())
    still = float(np.square(columns - 1).mean())
    return off < 0.25 * still


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
    rows = np.sqrt(np.maximum(difference, 0) / np.maximum(size, max(usual * 1e-4, 1e-30)))
    whole = math.sqrt(difference.sum() / max(size.sum(), 1e-30))
    row = int(np.argmax(rows))  # NaN counts as largest
    return TensorError(name, whole, float(rows[row]), row, limit)
