"""Opens GGUF files with care, decodes their tensors, and gives a checkpoint's weights back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import Keys
from numpy.typing import NDArray

from qconvert.formats.careful import is_plain
from qconvert.formats.floats import DTYPES, decode_floats
from qconvert.formats.gguf.grids import GRIDS
from qconvert.formats.gguf.header import Header, TensorInfo, decode_header, described
from qconvert.formats.gguf.layout import Placed
from qconvert.formats.gguf.model import read_model
from qconvert.formats.gguf.shards import find_files
from qconvert.formats.gguf.told import told_of
from qconvert.formats.refusal import Reason, Refused, raise_if_any, refuse
from qconvert.formats.source import Source
from qconvert.formats.target import StoredTensor
from qconvert.formats.told import Told

OWN_HEAD = "output.weight"
HEAD = "lm_head.weight"
"""A head that the model ties to its embedding, where the file has one of its own."""


@dataclass(frozen=True, slots=True)
class GgufReader:
    """`formats.target.Reader` of one GGUF file, or of all the files it was split into."""

    files: tuple[Path, ...]
    metadata: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    _bytes: Mapping[str, NDArray[np.uint8]] = field(repr=False)  # views of the mapped files

    def decode(self, name: str) -> NDArray[np.float32]:
        """The float32 values of a tensor, in the file's row order. `Refused` for other types."""
        stored = self.tensors[name]
        raw = self._bytes[name]
        if stored.dtype in DTYPES:
            return decode_floats(raw.view(DTYPES[stored.dtype]), stored.dtype).reshape(stored.shape)
        grid = GRIDS.get(stored.dtype)
        if grid is None:
            raise refuse(
                f"{name} is stored as {stored.dtype}, which qconvert cannot decode",
                f"it can decode {', '.join([*DTYPES, *GRIDS])}",
            )
        cols = stored.shape[-1]
        packed = raw.reshape(-1, grid.row_bytes(cols))
        return grid.decode(grid.unpack(packed, cols)).reshape(stored.shape)

    def weights(self, source: Source) -> Mapping[str, NDArray[np.float32]]:
        """Checkpoint name -> values, decoded one at a time; `Refused` where the file is of another
        model. A tied model whose file has a head of its own (a rotation unties it) has both."""
        model = read_model(source)
        placed = _first_of_each(model.tensors)
        if source.tied and not model.arch.head_required and OWN_HEAD in self.tensors:
            table = next(one for one in placed.values() if one.category == "embedding")
            placed[HEAD] = replace(table, name=OWN_HEAD)
        raise_if_any([reason for one in placed.values() for reason in self._faults(one)])
        return _Weights(self, placed)

    def told(self, source: Source) -> Told:
        """What its keys say of the model."""
        return told_of(self, source)

    def _faults(self, placed: Placed) -> Iterator[Reason]:
        stored = self.tensors.get(placed.name)
        if stored is None:
            yield Reason(f"the file has no {placed.name}", "was it made of another model?")
        elif stored.shape != placed.shape:
            yield Reason(
                f"{placed.name} is {stored.shape} in the file, {placed.shape} in the model"
            )


def _first_of_each(tensors: Sequence[Placed]) -> dict[str, Placed]:
    """By checkpoint name; a tied head that is stored twice counts once."""
    found: dict[str, Placed] = {}
    for placed in tensors:
        if placed.source is not None:
            found.setdefault(placed.source.name, placed)
    return found


class _Weights(Mapping[str, NDArray[np.float32]]):
    """Lazy: undoes `add`, the row order and the orientation when a tensor is asked for."""

    def __init__(self, reader: GgufReader, placed: Mapping[str, Placed]) -> None:
        self._reader, self._placed = reader, placed

    def __iter__(self) -> Iterator[str]:
        return iter(self._placed)

    def __len__(self) -> int:
        return len(self._placed)

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        placed = self._placed[name]
        values = self._reader.decode(placed.name)
        if placed.add:
            values = values - np.float32(placed.add)
        if placed.row_order is not None:
            restored = np.empty_like(values)
            restored[placed.row_order] = values
            values = restored
        if placed.source is not None and placed.source.transposed:
            values = np.ascontiguousarray(values.T)
        return values


def open_reader(path: Path) -> GgufReader:
    """Open `path` and all that belongs to it; `Refused`, naming the file, when one is damaged."""
    files = find_files(path)
    opened = [_open(file) for file in files]
    stored: dict[str, StoredTensor] = {}
    views: dict[str, NDArray[np.uint8]] = {}
    for number, (file, (header, data)) in enumerate(zip(files, opened, strict=True)):
        _check_shard(file, header, number, len(files))
        for name, info in header.tensors.items():
            if name in stored:
                raise refuse(f"{file}: tensor {name!r} is in another file of the same output")
            stored[name] = StoredTensor(name, info.shape, info.type.name, info.nbytes)
            views[name] = _view(header, info, data)
    metadata = {key: entry.value for key, entry in opened[0][0].entries.items()}
    promised = _whole(metadata.get(Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT, len(stored)))
    if promised != len(stored):
        raise refuse(f"{path}: {promised} tensors promised, {len(stored)} found")
    return GgufReader(files, metadata, stored, views)


def _open(path: Path) -> tuple[Header, NDArray[np.uint8]]:
    try:
        size = path.stat().st_size
        data = np.memmap(path, dtype=np.uint8, mode="r") if size else np.empty(0, dtype=np.uint8)
    except FileNotFoundError:
        raise refuse(f"no such file: {path}") from None
    except OSError as error:
        raise refuse(f"{path} cannot be read: {error.strerror or error}") from error
    view: NDArray[np.uint8] = data.view(np.ndarray)
    try:
        return decode_header(view.data), view
    except Refused as error:
        raise described(error, path) from None


def _check_shard(path: Path, header: Header, number: int, count: int) -> None:
    entries = header.entries
    found = [
        _whole(entries[key].value) if key in entries else default
        for key, default in (
            (Keys.Split.LLM_KV_SPLIT_NO, 0),
            (Keys.Split.LLM_KV_SPLIT_COUNT, 1),
        )
    ]
    if found != [number, count] and not (count == 1 and found[1] in (0, 1)):
        raise refuse(
            f"{path} says it is file {found[0]} of {found[1]}, not {number} of {count}",
            "keep the names that the files were written under",
        )


def _whole(value: Any) -> int | None:
    """A whole number of the metadata; None for anything else, which equals none that is wanted."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _view(header: Header, info: TensorInfo, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    start = header.data_start + info.offset
    return data[start : start + info.nbytes]


def looks_like_gguf(path: Path) -> bool:
    """True when `path`, or the first file that was split from it, begins as a GGUF file does."""
    try:
        first = find_files(path)[0]
        if not is_plain(first):  # a FIFO would be waited for
            return False
        with first.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False
