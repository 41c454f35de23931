"""One decoded matrix beside its source, to be looked at as often as a hypothesis needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.source import Source, SourceTensor

Floats = NDArray[np.float32]
ROWS = 4096  # rows of the source read at a time


@dataclass(frozen=True, slots=True)
class Case:
    """`here`: the decoded values, [rows, columns] as the source counts them.

    With `rows` [rows, 1] and `columns` [columns] the source's are multiplied by them before
    anything is compared: tensors that were scaled against each other."""

    source: Source
    tensor: SourceTensor
    name: str
    here: Floats
    rows: Floats | None = None
    columns: Floats | None = None

    def there(self, start: int = 0, stop: int | None = None) -> Floats:
        """Rows [start, stop) of the source, by default all."""
        stop = len(self.here) if stop is None else stop
        values = self.source.rows(self.tensor, start, stop).reshape(stop - start, -1)
        if self.columns is not None:
            values = values * self.columns
        return values if self.rows is None else values * self.rows[start:stop]

    def picked(self, rows: NDArray[np.intp]) -> Floats:
        """Some rows of the source, in this order."""
        if self.tensor.transposed or 4 * len(rows) > len(self.here):
            return self.there()[rows]
        return np.concatenate([self.there(int(row), int(row) + 1) for row in rows])

    def pieces(self) -> Iterator[tuple[slice, Floats, Floats]]:
        """(which rows, as decoded, as in the source), ROWS at a time."""
        for start in range(0, len(self.here), ROWS):
            stop = min(start + ROWS, len(self.here))
            yield slice(start, stop), self.here[start:stop], self.there(start, stop)


@dataclass(frozen=True, slots=True)
class Explanation:
    """What turns the source into the decoded tensor, and how much of it that leaves open."""

    problem: str  # a sentence without subject: "holds model.layers.0.mlp.up_proj.weight"
    left: float  # error that remains, relative
