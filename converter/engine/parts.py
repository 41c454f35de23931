"""One part of a model in a tensor file: a block, or what stands before or after the blocks.

A quantized tensor NAME on the grid GRID is stored as `NAME|GRID|codes` and `NAME|GRID|PARAMETER`, a
float one as `NAME|float`. `NAME|columns` is the scale of what the linear NAME reads, if it has one.
The metadata says in JSON to which job the part belongs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from qconvert.checkpoint import as_float32
from qconvert.engine.exact import exactly
from qconvert.engine.tensorfile import Form, TensorFile, TensorWriter, form_of
from qconvert.formats.grid import Grid
from qconvert.formats.source import Dtype, SourceTensor
from qconvert.formats.tensor import QuantizedTensor

Floats = NDArray[np.float32]
CODES, FLOAT, COLUMNS = "codes", "float", "columns"


@dataclass(frozen=True, slots=True)
class Stored:
    """A finished block: codes and float values by the name of the source tensor."""

    quantized: Mapping[str, QuantizedTensor]
    floats: Mapping[str, Floats]
    columns: Mapping[str, Floats] = field(default_factory=dict)
    """By the name of a weight, [in]: what its linear multiplies its input by, where it does."""


def arrays(stored: Stored, kept: Mapping[str, Dtype]) -> dict[str, tuple[Form, NDArray[Any]]]:
    """What to store of a block, floats in the type they had (`kept`) where it still holds them."""
    found = {}
    for name, tensor in stored.quantized.items():
        for part, values in _fields(tensor):
            found[f"{name}|{tensor.grid}|{part}"] = (form_of(values), values)
    for name, floats in stored.floats.items():
        dtype, narrow = kept[name], exactly(floats, kept[name])
        if narrow is None:
            dtype, narrow = "F32", floats
        found[f"{name}|{FLOAT}"] = (Form(dtype, floats.shape), narrow)
    for name, scale in stored.columns.items():
        found[f"{name}|{COLUMNS}"] = (form_of(scale), scale)
    return found


def _fields(tensor: QuantizedTensor) -> Iterator[tuple[str, NDArray[Any]]]:
    yield CODES, tensor.codes
    yield from tensor.params.items()


def layout(grid: Grid, shape: tuple[int, int]) -> dict[str, Form]:
    """Field -> form of a tensor of `shape` on `grid`, from one row of it."""
    rows, cols = shape
    one = grid.unpack(np.zeros((1, grid.row_bytes(cols)), np.uint8), cols)
    return {
        part: Form(form.dtype, (rows, *form.shape[1:]))
        for part, values in _fields(one)
        for form in [form_of(values)]
    }


class PartWriter:
    """Takes the rows of one part's tensors in chunks, the tensors in any order."""

    def __init__(
        self,
        file: BinaryIO,
        tensors: tuple[SourceTensor, ...],
        forms: Mapping[str, tuple[str, ...]],
        grids: Mapping[str, Grid],
        metadata: Mapping[str, str],
        *,
        unchanged: bool,
    ) -> None:
        """`unchanged`: float values are those of the source, so they fit in its type."""
        self._floats: dict[str, Dtype] = {}
        declared: dict[str, Form] = {}
        for tensor in tensors:
            for kind in forms[tensor.name]:
                if kind in grids:
                    rows, cols = tensor.shape
                    for part, form in layout(grids[kind], (rows, cols)).items():
                        declared[f"{tensor.name}|{kind}|{part}"] = form
                else:
                    dtype = tensor.dtype if unchanged else "F32"
                    self._floats[tensor.name] = dtype
                    declared[f"{tensor.name}|{FLOAT}"] = Form(dtype, tensor.shape)
        self._writer = TensorWriter(file, declared, metadata)

    def write(self, name: str, rows: QuantizedTensor | Floats) -> None:
        """Append the next rows of a tensor, on the grid that they are on, or float (vectors whole).

        `ValueError` where the plan has not declared them so, or where values said to be unchanged
        do not fit in the type of the source.
        """
        if isinstance(rows, QuantizedTensor):
            for part, values in _fields(rows):
                self._writer.append(f"{name}|{rows.grid}|{part}", values)
            return
        dtype = self._floats[name]
        stored = exactly(rows, dtype)
        if stored is None:
            raise ValueError(f"{name}: its values are not {dtype} any more")
        self._writer.append(f"{name}|{FLOAT}", stored)

    def finish(self) -> None:
        """`ValueError` unless every declared tensor is whole."""
        self._writer.finish()


@dataclass(frozen=True, slots=True)
class Part:
    """A part that has been checked, read by rows."""

    file: TensorFile

    @property
    def told(self) -> Mapping[str, Any]:
        """What the metadata says of it."""
        found: Mapping[str, Any] = json.loads(self.file.metadata["part"])
        return found

    def quantized(
        self, name: str, grid: str, start: int = 0, stop: int | None = None
    ) -> QuantizedTensor:
        """Rows [start, stop) of a tensor that is stored on `grid`."""
        front = f"{name}|{grid}|"
        fields = {
            key.removeprefix(front): self.file.rows(key, start, stop)
            for key in self.file.entries
            if key.startswith(front)
        }
        return QuantizedTensor(grid, fields.pop(CODES), fields)

    def floats(self, name: str, start: int = 0, stop: int | None = None) -> Floats:
        """Rows [start, stop) of a tensor that is stored in float; elements of a vector."""
        key = f"{name}|{FLOAT}"
        entry = self.file.entries[key]
        return as_float32(self.file.rows(key, start, stop), _float_type(entry.dtype))

    def has_floats(self, name: str) -> bool:
        return f"{name}|{FLOAT}" in self.file.entries

    def columns(self, name: str) -> Floats | None:
        """The scale [in] of what the linear with the weight `name` reads, if it has one."""
        key = f"{name}|{COLUMNS}"
        return as_float32(self.file.rows(key), "F32") if key in self.file.entries else None

    def whole(self) -> Stored:
        """Everything in it, in memory."""
        quantized, floats, columns = {}, {}, {}
        for key in self.file.entries:
            name, kind, *rest = key.split("|")
            scale = self.columns(name) if kind == COLUMNS else None
            if kind == FLOAT:
                floats[name] = self.floats(name)
            elif scale is not None:
                columns[name] = scale
            elif rest == [CODES]:
                quantized[name] = self.quantized(name, kind)
        return Stored(quantized, floats, columns)


def _float_type(dtype: str) -> Dtype:
    kinds: dict[str, Dtype] = {"F32": "F32", "F16": "F16", "BF16": "BF16"}
    return kinds[dtype]


def metadata(job: str, told: Mapping[str, Any]) -> dict[str, str]:
    """Metadata of a part of the job with the digest `job`."""
    return {"part": json.dumps({"job": job, **told}, sort_keys=True)}
