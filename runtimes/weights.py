"""Tensor by tensor: how far a decoded output is from its source, and do its bits explain that?"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.source import Source, SourceTensor
from qconvert.formats.target import Reader
from qconvert.runtimes.diagnosis.case import Case, Explanation, Floats
from qconvert.runtimes.diagnosis.diagnose import diagnosed
from qconvert.runtimes.diagnosis.folded import (
    ONLY_BY_NORM,
    READ_BY,
    Norm,
    column_factors,
    level_off,
    norm_of,
)
from qconvert.runtimes.diagnosis.hypotheses.scales import wrong_scales
from qconvert.runtimes.diagnosis.hypotheses.vectors import vector_problem
from qconvert.runtimes.diagnosis.statistics import statistics_of
from qconvert.runtimes.diagnosis.sums import TINY, Sums, sums_of
from qconvert.runtimes.diagnosis.tensor_error import TensorError
from qconvert.runtimes.diagnosis.usual import Seen, alone, unlike
from qconvert.runtimes.findings import Finding
from qconvert.runtimes.reference import TIED_HEAD

__all__ = ["NOT_COMPARED", "UP_TO_SCALE", "TensorError", "WeightCheck", "matrix_limit"]

LIMITS = ((15.0, 0.01), (8.0, 0.4), (5.0, 0.6), (4.0, 0.75), (0.0, 0.9))
"""(stored bits per weight from, largest error of a row relative to the row). Rounding to nearest
stays far below it. Error feedback moves weights further, where what linears read lets it: 0.27 of a
row was met in FP8, and 0.53 with 4 bits in groups of 128. A row of another tensor, or in another
place, is off by 1.4, a row that is missing by 1."""

VECTOR_LIMIT = 0.01  # norms and biases stay in float

FOLDED = "norms and linears are scaled or rotated against each other (smoothing, rotation):"
UP_TO_SCALE = (
    f"{FOLDED} tensors are compared with the source up to a factor for each row and column"
)
NOT_COMPARED = f"{FOLDED} tensors cannot be compared with the source one by one; the logits decide"

MOST_DIAGNOSED = 24  # tensors in a row of which nothing is known but that they are wrong
KNOWN = 0.9  # of a tensor is left open by what is no explanation


@dataclass(slots=True)
class _Looked:
    """What is known of one tensor."""

    error: TensorError
    role: str
    seen: Seen | None = None  # of a matrix whose values are finite
    problem: str = ""  # what is wrong with it, where something is


class WeightCheck:
    """Looks at each tensor that it is shown, norms before the linears that read them."""

    def __init__(self, source: Source, reader: Reader) -> None:
        self._source = source
        self._tensors = _by_name(source)
        self._limit = matrix_limit(reader)
        self._plain: list[_Looked] = []
        self._scaled: dict[int, _Looked] = {}  # matrices, once a norm was not the source's
        self._norms: dict[tuple[int | None, str], Norm] = {}
        self._matrices = 0
        self._unknown = 0  # wrong tensors in a row that nothing explained

    def __call__(self, name: str, value: NDArray[np.float32]) -> None:
        """`value`: decoded, in the orientation in which the checkpoint stores it."""
        tensor = self._tensors[name]
        if len(tensor.shape) == 1:
            self._vector(name, tensor, value.reshape(-1))
        else:
            self._matrix(name, tensor, value.T if tensor.transposed else value)

    @property
    def errors(self) -> list[TensorError]:
        """Of every tensor; of none where the file is that of a rotated model."""
        return [looked.error for looked in self._compared()]

    @property
    def findings(self) -> list[Finding]:
        """What is wrong, tensor by tensor in the order of the file."""
        compared = self._compared()
        seen = [one.seen for one in compared if one.seen is not None and one.error.ok]
        odd = {} if self.note == UP_TO_SCALE else dict(unlike(seen))
        found = []
        for one in compared:
            problem = one.problem or odd.get(one.error.name, "")
            if not one.error.ok:
                problem = _told(one.error, problem)
            if problem:
                found.append(Finding("bytes", one.error.name, f"{one.error.name} {problem}"))
        return found

    @property
    def note(self) -> str:
        """What was done about a file whose norms are not the source's; empty: nothing had to be."""
        if not self._norms:
            return ""
        far = sum(
            not one.error.ok for at, one in self._scaled.items() if not self._plain[at].error.ok
        )
        rotated = all(norm.level and not norm.explained for norm in self._norms.values())
        if 2 * far > self._matrices and rotated:
            return NOT_COMPARED
        return UP_TO_SCALE if any(norm.explained for norm in self._norms.values()) else ""

    def _compared(self) -> list[_Looked]:
        """Every tensor, as the file wants to be compared."""
        note = self.note
        if note == NOT_COMPARED:
            return []
        if not note:
            return list(self._plain)
        found = [self._scaled.get(at, one) for at, one in enumerate(self._plain)]
        explained = {norm.at for norm in self._norms.values() if norm.explained}
        return [one for at, one in enumerate(found) if at not in explained]

    def _vector(self, name: str, tensor: SourceTensor, value: NDArray[np.float32]) -> None:
        there = self._source.rows(tensor, 0, 1).reshape(1, -1)
        off, size = (np.square(one, dtype=np.float64).sum(1) for one in (value - there, there))
        error = _error(name, off, size, VECTOR_LIMIT)
        problem = "" if error.ok else vector_problem(self._source, tensor, value)
        self._plain.append(_Looked(error, tensor.role, problem=problem))
        if tensor.role in READ_BY and tensor.part == "weight" and not error.ok:
            there = there[0].astype(np.float64)
            self._norms[tensor.block, tensor.role] = norm_of(len(self._plain) - 1, there, value)

    def _matrix(self, name: str, tensor: SourceTensor, rows: NDArray[np.float32]) -> None:
        self._matrices += 1
        case = Case(self._source, tensor, name, rows)
        norms = [
            norm
            for (block, role), norm in self._norms.items()
            if block == tensor.block and tensor.role in READ_BY[role]
        ]
        plain = self._look(case)
        self._plain.append(plain)
        if not self._norms:
            return
        columns = column_factors(case)
        for norm in norms:
            norm.explained |= norm.explains(columns)
        if columns.any():
            scaled = self._look_scaled(case, columns.astype(np.float32), plain)
            if tensor.role in ONLY_BY_NORM and scaled.error.ok:
                scaled.problem = scaled.problem or level_off(norms, columns, scaled.error.error)
            self._scaled[len(self._plain) - 1] = scaled

    def _look(self, case: Case) -> _Looked:
        """As it is; what is wrong with it, in a file that may be folded, is not asked yet."""
        by_row, by_group = sums_of(case)
        found = _Looked(_error(case.name, by_row.ee, by_row.ss, self._limit), case.tensor.role)
        if found.error.ok or not self._norms:
            self._read(found, case, case, (by_row, by_group))
        return found

    def _look_scaled(self, case: Case, columns: Floats, plain: _Looked) -> _Looked:
        """Beside the source with its columns multiplied by these, and its rows by what fits."""
        scaled = replace(case, columns=columns)
        by_row, _ = sums_of(scaled)
        error = _error(case.name, *_up_to_factor(by_row), self._limit)
        rows = by_row.sd / np.maximum(by_row.ss, TINY)
        found = _Looked(error, case.tensor.role)
        self._read(found, replace(scaled, rows=rows[:, None].astype(np.float32)), case)
        if not plain.error.ok:
            plain.problem = found.problem if not error.ok else _said(wrong_scales(case))
        return found

    def _read(
        self, found: _Looked, case: Case, plain: Case, sums: tuple[Sums, Sums] | None = None
    ) -> None:
        """Fill in what `case` tells; hypotheses are about the source as it is, in `plain`."""
        if math.isfinite(found.error.error):
            statistics = statistics_of(case, *(sums or sums_of(case)))
            found.seen = Seen(case.name, case.tensor.role, statistics)
            found.problem = alone(statistics, fitted=case is not plain)
        if not found.error.ok or found.problem:
            found.problem = self._diagnosed(plain) or found.problem

    def _diagnosed(self, case: Case) -> str:
        """In a rotated file nothing explains anything: it is not asked of every tensor."""
        if self._unknown >= MOST_DIAGNOSED:
            return ""
        found = diagnosed(case)
        known = found is not None and found.left < KNOWN
        self._unknown = 0 if known else self._unknown + 1
        return _said(found)


def _by_name(source: Source) -> dict[str, SourceTensor]:
    """The source's tensors; what a tied head stands for is the embedding."""
    found = {tensor.name: tensor for tensor in source.tensors}
    if source.tied:
        table = next(tensor for tensor in source.tensors if tensor.role == "embedding")
        found.setdefault(TIED_HEAD, table)
    return found


def _said(found: Explanation | None) -> str:
    return "" if found is None else found.problem


def _told(error: TensorError, problem: str) -> str:
    if not math.isfinite(error.worst_row):
        return problem or "is not finite"
    return (
        f"{problem or 'is not what the model holds'}: row {error.row} is off by"
        f" {error.worst_row:.0%} (rounding explains at most {error.limit:.0%}; whole tensor"
        f" {error.error:.1%})"
    )


def _up_to_factor(by_row: Sums) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """By row: what no factor takes away (all of it where the row is zero), and the size."""
    return by_row.left, by_row.ss


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
    rows = np.sqrt(np.maximum(difference, 0) / np.maximum(size, max(usual * 1e-4, TINY)))
    whole = math.sqrt(difference.sum() / max(size.sum(), TINY))
    row = int(np.argmax(rows))  # NaN counts as largest
    return TensorError(name, whole, float(rows[row]), row, limit)
