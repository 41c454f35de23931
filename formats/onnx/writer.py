"""Streams tensors into the folder of a graph, which appears whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.destination import appearing, destination_problems
from qconvert.formats.floats import encode_floats
from qconvert.formats.onnx.rope import Rope
from qconvert.formats.onnx.stores import Store
from qconvert.formats.ordered import OrderedSink, Rows
from qconvert.formats.refusal import raise_if_any
from qconvert.formats.serving.folder.gather import Gathered
from qconvert.formats.target import OutputTensor, Plan
from qconvert.formats.tensor import QuantizedTensor

SIGN = "genai_config.json"
TABLE_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Folder:
    """Everything about a folder but its weights; `Plan.details["onnx"]`."""

    stores: Mapping[str, tuple[Store, ...]]  # by output tensor
    regions: Mapping[str, tuple[int, int]]  # of the data file: name -> offset, bytes
    size: int  # of the data file
    tables: Mapping[tuple[str, str], Rope]  # regions of cosines and sines -> what they hold
    positions: int  # rows of each table
    files: Mapping[str, bytes]  # model.onnx, genai_config.json
    copies: Mapping[str, Path]  # name -> the source's own file: tokenizer.json, ...
    data: str = "model.onnx.data"


def folder_of(plan: Plan) -> Folder:
    found = plan.details["onnx"]
    assert isinstance(found, Folder)
    return found


def outputs(plan: Plan, path: Path) -> tuple[Path, ...]:
    """The files that will be in `path`, weights first."""
    folder = folder_of(plan)
    return tuple(path / name for name in (folder.data, *folder.files, *folder.copies))


def overhead(folder: Folder, weights: int) -> int:
    """Bytes of the folder that are not the `weights` bytes of tensors."""
    copied = sum(path.stat().st_size for path in folder.copies.values())
    return folder.size - weights + sum(len(one) for one in folder.files.values()) + copied


@contextmanager
def open_writer(plan: Plan, path: Path) -> Iterator[OrderedSink]:
    """A sink for `plan`; the folder appears at `path` when the block ends well.

    `Refused` where something else than an older output is there, or a weight is not finite;
    `OSError` as the system raises it. On any failure nothing is left, and what was at `path` stays.
    """
    folder = folder_of(plan)
    raise_if_any(destination_problems(path, folder.copies.values(), SIGN))
    with appearing(path) as part:
        for name, content in folder.files.items():
            (part / name).write_bytes(content)
        for name, source in folder.copies.items():
            shutil.copyfile(source, part / name)
        with DataFile(part / folder.data, folder) as data:
            data.put_tables()
            sink = OrderedSink(plan, data.put_rows)
            yield sink
            sink.finish()


class DataFile:
    """`formats.onnx.stores.Data` at planned offsets. Used as a context."""

    def __init__(self, path: Path, folder: Folder) -> None:
        self._folder, self._path = folder, path
        self._file: BinaryIO | None = None
        self._gathered: Gathered | None = None
        self._left = 0  # rows that are still to come

    def __enter__(self) -> DataFile:
        self._file = self._path.open("xb")
        self._file.truncate(self._folder.size)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._file.close()

    def put(self, region: str, offset: int, array: NDArray[np.generic]) -> None:
        begin, nbytes = self._folder.regions[region]
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        if offset + len(raw) > nbytes:
            raise ValueError(f"{region}: {offset} + {len(raw)} of {nbytes} bytes")
        assert self._file is not None
        self._file.seek(begin + offset)
        self._file.write(raw)

    def put_rows(self, tensor: OutputTensor, rows: Rows, start: int) -> None:
        """As `formats.ordered.Put`."""
        if not isinstance(rows, QuantizedTensor):
            rows = encode_floats(rows, "F32", tensor.name)
        stores = self._folder.stores[tensor.name]
        for store in stores:
            if not store.whole:
                store.put(self, rows, start)
        if isinstance(rows, QuantizedTensor) and any(store.whole for store in stores):
            self._gather(tensor, rows, stores)

    def _gather(
        self, tensor: OutputTensor, rows: QuantizedTensor, stores: tuple[Store, ...]
    ) -> None:
        """Keep the rows of a tensor until it is whole, for stores that want it so."""
        if self._gathered is None:
            self._gathered, self._left = Gathered(rows, tensor.shape[0]), tensor.shape[0]
        self._gathered.add(rows)
        self._left -= rows.shape[0]
        if self._left:
            return
        whole, self._gathered = self._gathered.whole(), None
        for store in stores:
            if store.whole:
                store.put(self, whole, 0)

    def put_tables(self) -> None:
        for names, rope in self._folder.tables.items():
            for start in range(0, self._folder.positions, TABLE_ROWS):
                stop = min(start + TABLE_ROWS, self._folder.positions)
                for name, table in zip(names, rope.tables(start, stop), strict=True):
                    self.put(name, 4 * rope.width * start, table)
