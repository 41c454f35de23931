"""Streams tensors into a GGUF file that appears whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.floats import encode_floats
from qconvert.formats.gguf.header import padded
from qconvert.formats.gguf.shards import Shard, shard_paths
from qconvert.formats.ordered import OrderedSink, Rows
from qconvert.formats.target import OutputTensor, Plan
from qconvert.formats.tensor import QuantizedTensor


@contextmanager
def open_writer(plan: Plan, path: Path) -> Iterator[GgufSink]:
    """A sink for `plan`; the files appear under their names when the block ends well.

    The parts lie beside them meanwhile, and are removed on any failure. `OSError` as the system
    raises it, `Refused` where a weight does not fit its float type.
    """
    shards: Sequence[Shard] = plan.details["shards"]
    finals = shard_paths(path, len(shards))
    parts = [final.with_name(f".{final.name}.{os.getpid()}.part") for final in finals]
    sink = GgufSink(plan, shards, parts)
    try:
        yield sink
        sink.finish()
        _publish(parts, finals)
    finally:
        with suppress(OSError):  # on a full disk, what is still buffered fails here again
            sink.close()
        for part in parts:
            part.unlink(missing_ok=True)


def _publish(parts: Sequence[Path], finals: Sequence[Path]) -> None:
    """Rename all parts, the first file last: while it is missing, nothing can be loaded."""
    done: list[Path] = []
    try:
        for part, final in reversed(list(zip(parts, finals, strict=True))):
            part.replace(final)
            done.append(final)
    except OSError:
        for final in done:
            with suppress(OSError):
                final.unlink()
        raise


class GgufSink:
    """Takes the plan's tensors in order, rows in order. Anything else is a `ValueError`."""

    def __init__(self, plan: Plan, shards: Sequence[Shard], parts: Sequence[Path]) -> None:
        self._shards, self._parts = shards, parts
        self._ordered = OrderedSink(plan, self._take)
        self._file: BinaryIO | None = None
        self._shard = -1  # the one that is open
        self._next = 0  # the tensor that is being written
        self._open_for_next()

    def write(self, tensor: OutputTensor, rows: Rows) -> None:
        """Append rows of `tensor`, packed."""
        self._ordered.write(tensor, rows)

    def finish(self) -> None:
        """Close the last file; `ValueError` unless every tensor has been written in full."""
        self._ordered.finish()
        self.close()
        for part, shard in zip(self._parts, self._shards, strict=True):
            if part.stat().st_size != shard.size:
                raise ValueError(f"{part}: {part.stat().st_size} bytes, planned {shard.size}")

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _take(self, due: OutputTensor, rows: Rows, start: int) -> None:
        """As `formats.ordered.Put`."""
        total = due.shape[0] if len(due.shape) > 1 else 1
        count = rows.shape[0] if len(due.shape) > 1 else 1
        raw = _packed(due, rows)
        if raw.nbytes * total != due.nbytes * count:
            raise ValueError(f"{due.name}: {raw.nbytes} bytes in {count} rows of {due.dtype}")
        self._write(raw.data)
        if start + count == total:
            self._write(bytes(padded(due.nbytes) - due.nbytes))
            self._next += 1
            self._open_for_next()

    def _open_for_next(self) -> None:
        """Go on to the next file where the tensor that is due begins one."""
        following = self._shard + 1
        while following < len(self._shards) and self._shards[following].first == self._next:
            self.close()
            self._shard = following
            self._file = self._parts[following].open("wb")
            self._write(self._shards[following].header)
            following += 1

    def _write(self, raw: bytes | memoryview) -> None:
        assert self._file is not None
        self._file.write(raw)


def _packed(tensor: OutputTensor, rows: Rows) -> NDArray[np.generic]:
    """The bytes of some rows."""
    if isinstance(rows, QuantizedTensor):
        assert tensor.grid is not None
        return np.ascontiguousarray(tensor.grid.pack(rows))
    return np.ascontiguousarray(encode_floats(rows, tensor.dtype, tensor.name))
