"""Stores: where the rows of a tensor go in `model.onnx.data`.

The data file is a sequence of regions, planned before any weight is read. Initializers of the graph
are views of regions: several may show one in different shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.onnx import packing
from qconvert.formats.onnx.kinds import Kind
from qconvert.formats.ordered import Rows
from qconvert.formats.tensor import QuantizedTensor


class Data(Protocol):
    """The data file."""

    def put(self, region: str, offset: int, array: NDArray[np.generic]) -> None:
        """Write `array` into a region, `offset` bytes from its begin."""
        ...


@dataclass(frozen=True, slots=True)
class Part:
    """Rows [start, stop) of an output tensor; elements of a vector."""

    tensor: str
    start: int
    stop: int

    @property
    def count(self) -> int:
        return self.stop - self.start

    def taken(self, rows: Rows, start: int) -> tuple[Rows | None, int]:
        """Of `rows`, the first of which is row `start` of the tensor, those of this part; and which
        row of the part the first of them is."""
        first, last = max(start, self.start), min(start + rows.shape[0], self.stop)
        if first >= last:
            return None, 0
        which = slice(first - start, last - start)
        found = rows.take_rows(which) if isinstance(rows, QuantizedTensor) else rows[which]
        return found, first - self.start


class Store(Protocol):
    """Stores some rows of one tensor."""

    @property
    def nbytes(self) -> int: ...
    @property
    def whole(self) -> bool:
        """Whether it wants all rows of the tensor at once."""
        ...

    def put(self, data: Data, rows: Rows, start: int) -> None:
        """Take `rows` of the tensor, the first of which is row `start`; a vector's are its
        elements."""
        ...


@dataclass(frozen=True, slots=True)
class FloatRows:
    """float32, row after row."""

    part: Part
    row: int  # where its first row is stored
    cols: int  # 1 for a vector
    region: str
    whole: bool = False

    @property
    def nbytes(self) -> int:
        return 4 * self.cols * self.part.count

    def put(self, data: Data, rows: Rows, start: int) -> None:
        assert not isinstance(rows, QuantizedTensor)
        found, row = self.part.taken(rows.reshape(-1, self.cols), start)
        if found is not None:
            data.put(self.region, 4 * self.cols * (self.row + row), np.asarray(found, "<f4"))


@dataclass(frozen=True, slots=True)
class CodeRows:
    """Codes, scales and zero points as MatMulNBits and GatherBlockQuantized read them."""

    part: Part
    row: int  # where its first row is stored
    cols: int
    kind: Kind
    regions: tuple[str, str, str]  # codes, scales, zero points: "" for none
    whole: bool = False

    @property
    def field(self) -> int:
        """Bits in which a code is stored."""
        return self.kind.field

    @property
    def widths(self) -> tuple[int, int, int]:
        """Bytes of a row in each region."""
        zeros = self.kind.zero_bytes(self.cols) if self.regions[2] else 0
        return self.cols * self.kind.field // 8, 4 * self.kind.groups(self.cols), zeros

    @property
    def nbytes(self) -> int:
        return sum(self.widths) * self.part.count

    def put(self, data: Data, rows: Rows, start: int) -> None:
        found, row = self.part.taken(rows, start)
        if found is None:
            return
        assert isinstance(found, QuantizedTensor)
        arrays = (packing.code_bytes(found, self.kind), packing.scales(found),
                  packing.zero_bytes(found, self.kind) if self.regions[2] else None)  # fmt: skip
        for region, width, array in zip(self.regions, self.widths, arrays, strict=True):
            if array is not None:
                data.put(region, (self.row + row) * width, array)


STEP = 1 << 22
"""Codes that are turned at a time."""


@dataclass(frozen=True, slots=True)
class CodeColumns:
    """Codes [cols, rows], scales and zero points [groups, rows] as DequantizeLinear reads them:
    elements follow each other, two in a byte at 4 bits, whatever the row that they are of."""

    part: Part
    cols: int
    kind: Kind
    field: int  # bits of the type
    regions: tuple[str, str, str]  # codes, scales, zero points: "" for none
    whole: bool = True

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Bytes of each region."""
        rows, groups = self.part.count, self.kind.groups(self.cols)
        zeros = -(-rows * groups * self.field // 8) if self.regions[2] else 0
        return -(-rows * self.cols * self.field // 8), 4 * rows * groups, zeros

    @property
    def nbytes(self) -> int:
        return sum(self.sizes)

    def put(self, data: Data, rows: Rows, start: int) -> None:
        found, _ = self.part.taken(rows, start)
        assert isinstance(found, QuantizedTensor)
        assert found.shape[0] == self.part.count
        codes, scales, zeros = self.regions
        count = self.part.count
        step = max(2, STEP // count // 2 * 2)  # an even number of rows fills whole bytes
        for at in range(0, self.cols, step):
            piece = packing.elements(found.codes[:, at : at + step].T, self.kind, self.field)
            data.put(codes, at * count * self.field // 8, piece)
        data.put(scales, 0, packing.scales(found).T)
        if zeros:
            found_zeros = found.params["zero"].astype(np.uint8).T
            data.put(zeros, 0, packing.elements(found_zeros, self.kind, self.field))
