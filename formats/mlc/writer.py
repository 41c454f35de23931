"""Streams tensors into an MLC folder that appears whole or not at all."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.destination import appearing, destination_problems
from qconvert.formats.mlc.cache import (
    INDEX,
    NARROW,
    OLDER_INDEX,
    WEB_INDEX,
    Record,
    Shard,
    index_json,
    plan_shards,
)
from qconvert.formats.mlc.config import CONFIG
from qconvert.formats.mlc.folder import NAMES, Q_SCALE, Q_WEIGHT, Layout, Place, layout_of
from qconvert.formats.mlc.words import encode, encode_kept
from qconvert.formats.ordered import OrderedSink, Rows
from qconvert.formats.refusal import raise_if_any
from qconvert.formats.target import OutputTensor, Plan
from qconvert.formats.tensor import QuantizedTensor

_AT_ONCE = 1 << 20  # bytes


def written_files(plan: Plan) -> dict[str, int]:
    """Name -> size of every file of a folder, shards first."""
    layout, weights = layout_of(plan), _elements(plan)
    shards = plan_shards(layout.records.values())
    sums = ["0" * 32] * len(shards)
    return {
        **{shard.name: shard.nbytes for shard in shards},
        **{name: len(text) for name, text in _indices(shards, sums, weights).items()},
        **{name: len(content) for name, content in layout.files.items()},
        **{name: path.stat().st_size for name, path in layout.copies.items()},
    }


def outputs(plan: Plan, path: Path) -> tuple[Path, ...]:
    """The files that will be in `path`, weights first."""
    return tuple(path / name for name in written_files(plan))


def overhead(plan: Plan) -> int:
    """Bytes of the folder that are not tensors."""
    stored = sum(record.nbytes for record in layout_of(plan).records.values())
    return sum(written_files(plan).values()) - stored


@contextmanager
def open_folder(plan: Plan, path: Path) -> Iterator[OrderedSink]:
    """A sink for `plan`; the folder appears at `path` when the block ends well.

    Rows go straight to their place in a shard; of transposed linears the packed words of one are
    held until it is whole. `Refused` where something else than an older output is there, or a value
    does not fit its float type; `OSError` as the system raises it. On any failure nothing is left,
    and what was at `path` stays.
    """
    layout = layout_of(plan)
    raise_if_any(destination_problems(path, layout.copies.values(), CONFIG))
    with appearing(path) as part:
        shards = plan_shards(layout.records.values())
        for shard in shards:
            with (part / shard.name).open("wb") as file:
                file.truncate(shard.nbytes)
        with _Shards(part, shards) as files:
            writer = _Writer(layout, files)
            sink = OrderedSink(plan, writer.put)
            yield sink
            sink.finish()
            writer.finish()
        sums = [_md5(part / shard.name) for shard in shards]
        for name, text in _indices(shards, sums, _elements(plan)).items():
            (part / name).write_bytes(text)
        for name, source in layout.copies.items():
            shutil.copyfile(source, part / name)
        for name, content in layout.files.items():
            (part / name).write_bytes(content)


def _elements(plan: Plan) -> int:
    """Elements of the checkpoint's tensors, each counted once."""
    return sum(
        int(np.prod(one.shape))
        for one in {t.source.name: t.source for t in plan.tensors if t.source}.values()
    )


def _indices(shards: Sequence[Shard], sums: Sequence[str], weights: int) -> dict[str, bytes]:
    text = index_json(shards, sums, weights)
    found = {INDEX: text, OLDER_INDEX: text}
    if any(record.format == NARROW for shard in shards for record, _ in shard.records):
        found[WEB_INDEX] = index_json(shards, sums, weights, web=True)
    return found


def _md5(path: Path) -> str:
    """Of what the file system gives back; md5 is what the format has."""
    found = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(_AT_ONCE):
            found.update(piece)
    return found.hexdigest()


class _Shards:
    """Writes into records at byte offsets. One file is open at a time."""

    def __init__(self, part: Path, shards: Sequence[Shard]) -> None:
        self._where = {
            record.name: (part / shard.name, offset, record)
            for shard in shards
            for record, offset in shard.records
        }
        self._open: tuple[Path, BinaryIO] | None = None

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def record(self, name: str) -> Record:
        return self._where[name][2]

    def write(self, name: str, values: NDArray[Any], at: int = 0) -> None:
        """`values` as bytes into the record `name`, from its byte `at` on."""
        path, offset, record = self._where[name]
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        if at + len(data) > record.nbytes:
            raise ValueError(f"{name}: bytes {at} + {len(data)} of {record.nbytes}")
        file = self._file(path)
        file.seek(offset + at)
        file.write(data)

    def _file(self, path: Path) -> BinaryIO:
        if self._open is None or self._open[0] != path:
            self._close()
            self._open = (path, path.open("r+b"))
        return self._open[1]

    def _close(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None


@dataclass(slots=True)
class _Gathered:
    """A transposed linear that is not whole yet: its rows, packed."""

    words: NDArray[np.uint32]  # [rows, words]
    scales: NDArray[Any]  # [rows, groups]
    left: int  # rows to come


@dataclass(slots=True)
class _Writer:
    """Puts rows where the layout has them."""

    layout: Layout
    files: _Shards
    gathered: dict[str, _Gathered] = field(default_factory=dict)

    def put(self, tensor: OutputTensor, rows: Rows, start: int) -> None:
        place = self.layout.places[tensor.name]
        if not isinstance(rows, QuantizedTensor):
            self._kept(tensor, rows, place.first + start)
            return
        kind = "BF16" if self.layout.narrow else NAMES[self.layout.scheme.dtype]
        words, scales = encode(rows, self.layout.scheme, kind, compatible=self.layout.compatible)
        if place.layout == "NK":
            first = place.first + start
            self._rows(f"{place.module}.{Q_WEIGHT}", words, first)
            self._rows(f"{place.module}.{Q_SCALE}", scales, first)
        else:
            self._gather(place, words, scales, place.first + start)

    def finish(self) -> None:
        if self.gathered:
            raise ValueError(f"{', '.join(self.gathered)}: rows are missing")

    def _kept(self, tensor: OutputTensor, values: NDArray[np.float32], first: int) -> None:
        """Rows of a matrix, or all of a vector, whose elements are then what `first` counts."""
        stored = encode_kept(values, tensor.dtype, tensor.name)
        self._rows(self.layout.places[tensor.name].module, stored, first)

    def _rows(self, name: str, values: NDArray[Any], first: int) -> None:
        row = values[0].nbytes  # of a vector: one element
        self.files.write(name, values, first * row)

    def _gather(
        self, place: Place, words: NDArray[np.uint32], scales: NDArray[Any], first: int
    ) -> None:
        names = (f"{place.module}.{Q_WEIGHT}", f"{place.module}.{Q_SCALE}")
        rows = self.files.record(names[0]).shape[1]
        held = self.gathered.get(place.module)
        if held is None:
            held = self.gathered[place.module] = _Gathered(
                np.empty((rows, words.shape[1]), words.dtype),
                np.empty((rows, scales.shape[1]), scales.dtype),
                rows,
            )
        held.words[first : first + len(words)] = words
        held.scales[first : first + len(scales)] = scales
        held.left -= len(words)
        if not held.left:
            del self.gathered[place.module]
            self.files.write(names[0], held.words.T)
            self.files.write(names[1], held.scales.T)
