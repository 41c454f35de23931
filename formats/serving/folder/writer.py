"""Streams tensors into a folder that appears whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.checkpoint_files import INDEX
from qconvert.formats.destination import appearing, destination_problems
from qconvert.formats.floats import encode_floats
from qconvert.formats.ordered import OrderedSink, Rows
from qconvert.formats.refusal import raise_if_any
from qconvert.formats.serving.container import Array, Entry
from qconvert.formats.serving.folder.gather import Gathered
from qconvert.formats.serving.folder.shards import (
    Shard,
    folder_of,
    index_json,
    plan_shards,
    written_files,
)
from qconvert.formats.target import OutputTensor, Plan
from qconvert.formats.tensor import QuantizedTensor

CONFIG = "config.json"

STORED: Mapping[str, str] = {
    "F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "|u1", "U8": "|u1", "I8": "|i1",
    "I32": "<i4", "I64": "<i8",
}  # fmt: skip
"""numpy's name of each stored type."""


def outputs(plan: Plan, path: Path) -> tuple[Path, ...]:
    """The files that will be in `path`, weights first."""
    return tuple(path / name for name in written_files(plan))


def overhead(plan: Plan) -> int:
    """Bytes of the folder that are not tensors, as far as they are known before."""
    stored = sum(entry.nbytes for found in folder_of(plan).entries.values() for entry in found)
    return sum(written_files(plan).values()) - stored


@contextmanager
def open_folder(plan: Plan, path: Path) -> Iterator[FolderSink]:
    """A sink for `plan`; the folder appears at `path` when the block ends well.

    `Refused` where something else than an older output is there, or a weight does not fit its float
    type; `OSError` as the system raises it. On any failure nothing is left, and what was at `path`
    stays.
    """
    folder = folder_of(plan)
    raise_if_any(destination_problems(path, folder.copies.values(), CONFIG))
    with appearing(path) as part:
        for name, content in folder.files.items():
            (part / name).write_bytes(content)
        for name, source in folder.copies.items():
            shutil.copyfile(source, part / name)
        shards = plan_shards(plan)
        if len(shards) > 1:
            (part / INDEX).write_bytes(index_json(shards))
        sink = FolderSink(plan, shards, part)
        try:
            yield sink
            sink.finish()
        finally:
            with suppress(OSError):  # on a full disk, what is still buffered fails here again
                sink.close()


class FolderSink:
    """Takes the plan's tensors in order, rows in order. Anything else is a `ValueError`."""

    def __init__(self, plan: Plan, shards: tuple[Shard, ...], part: Path) -> None:
        self._folder, self._part = folder_of(plan), part
        self._ordered = OrderedSink(plan, self._take)
        self._shards = iter(shards)
        self._shard: Shard | None = None
        self._left = 0  # tensors of the open shard that are still to come
        self._file: BinaryIO | None = None
        self._gathered: Gathered | None = None
        self._measured: dict[str, float] = {}
        self._reach: dict[str, float] = {}  # of linears whose joint numbers are still to be made
        self._open_for_next()

    def write(self, tensor: OutputTensor, rows: Rows) -> None:
        """Append rows of `tensor`. Codes are gathered, and packed when the linear is whole; floats
        are written at once."""
        self._ordered.write(tensor, rows)

    def finish(self) -> None:
        """Write the files that are made of measured numbers, and close; `ValueError` unless every
        tensor has been written in full."""
        self._ordered.finish()
        self.close()
        for name, made in self._folder.made.items():
            (self._part / name).write_bytes(made(self._measured))

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _open_for_next(self) -> None:
        """Go on to the next file when the tensors of the open one are written."""
        while self._left == 0:
            shard = next(self._shards, None)
            self.close()
            if shard is None:
                return
            self._shard, self._left = shard, len(shard.tensors)
            self._file = (self._part / shard.name).open("wb")
            self._file.write(shard.placed.header)
            self._file.truncate(shard.placed.size)

    def _take(self, due: OutputTensor, rows: Rows, start: int) -> None:
        """As `formats.ordered.Put`."""
        if isinstance(rows, QuantizedTensor):
            if self._gathered is None:
                self._gathered = Gathered(rows, due.shape[0])
            self._gathered.add(rows)
        else:
            self._take_floats(due, rows, start)
        if len(due.shape) < 2 or start + rows.shape[0] == due.shape[0]:
            if due.grid is not None:
                self._pack(due)
            self._left -= 1
            self._open_for_next()

    def _pack(self, due: OutputTensor) -> None:
        assert self._gathered is not None
        assert self._folder.container is not None
        whole, self._gathered = self._gathered.whole(), None
        linear = self._folder.linears[due.name]
        arrays = {
            **self._folder.container.pack(linear, whole, self._folder.float_type),
            **self._joint(due.name, whole),
        }
        entries = self._folder.entries[due.name]
        if set(arrays) != {entry.name for entry in entries}:
            raise ValueError(f"{due.name}: packed {sorted(arrays)}")
        for entry in entries:
            array = arrays[entry.name]
            if (array.shape, array.dtype) != (entry.shape, np.dtype(STORED[entry.dtype])):
                raise ValueError(f"{entry.name}: {array.dtype} {array.shape}, planned {entry}")
            self._put(entry, 0, array)

    def _joint(self, name: str, tensor: QuantizedTensor) -> dict[str, Array]:
        """The numbers that `tensor`, the last of some linears, has in common with them."""
        container, linears = self._folder.container, self._folder.linears
        assert container is not None
        joint = container.joint(linears[name])
        if joint is None:
            return {}
        self._reach[name] = joint.of(tensor)
        members = self._folder.joint.get(name, ())
        if not members:
            return {}
        value = joint.stored(max(self._reach.pop(one) for one in members))
        found = [container.joint(linears[one]) for one in members]
        return {
            one.entry.name: np.full(one.entry.shape, value, "<f4")
            for one in found
            if one is not None
        }

    def _take_floats(self, due: OutputTensor, values: NDArray[np.float32], start: int) -> None:
        if due.statistic is not None:
            self._measured[due.name] = float(np.asarray(values).reshape(()))
        for entry in self._folder.entries[due.name]:
            width = entry.nbytes // due.shape[0] if len(due.shape) > 1 else 0
            self._put(entry, start * width, encode_floats(values, entry.dtype, entry.name))

    def _put(self, entry: Entry, offset: int, array: Array) -> None:
        """Write `array` into the place of `entry`, `offset` bytes from its begin."""
        assert self._file is not None
        assert self._shard is not None
        raw = np.ascontiguousarray(array)
        if offset + raw.nbytes > entry.nbytes:
            raise ValueError(f"{entry.name}: {offset} + {raw.nbytes} of {entry.nbytes} bytes")
        self._file.seek(self._shard.placed.offsets[entry.name] + offset)
        self._file.write(raw.reshape(-1).view(np.uint8).data)
