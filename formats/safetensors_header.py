"""The header of a safetensors file, read and checked without touching the weights.

Layout: u64 little-endian length, that many bytes of JSON, then the data. Source of the rules:
huggingface/safetensors, `safetensors/src/tensor.rs` (`Metadata::validate`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from qconvert.formats.careful import is_plain, parse_json
from qconvert.formats.refusal import refuse

LARGEST_HEADER = 100_000_000
MOST_SIZES = 32
"""In a shape: what numpy holds."""
LARGEST_SIZE = 1 << 48
"""Of one dimension: sizes in bytes and their products then fit wherever they are computed."""
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one stored tensor lies."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int  # from the start of the file
    nbytes: int


class _Bad(Exception):
    """What is wrong with a header, in one line."""


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of `path`; `Refused`, naming the file and the fault, unless every byte is
    accounted for."""
    try:
        if path.exists() and not is_plain(path):
            raise _Bad("it is not a plain file")
        return _read(path)
    except _Bad as fault:
        raise refuse(f"{path.name}: {fault}", "download or copy the file again") from None
    except OSError as fault:
        raise refuse(f"{path.name}: cannot be read: {fault.strerror}") from None


def _read(path: Path) -> dict[str, Entry]:
    with path.open("rb") as file:
        size = path.stat().st_size
        if size < 8:
            raise _Bad(f"truncated: {size} bytes are too few for a safetensors file")
        length = int.from_bytes(file.read(8), "little")
        if length > LARGEST_HEADER:
            raise _Bad(f"not a safetensors file: it claims a header of {length} bytes")
        if 8 + length > size:
            raise _Bad(f"truncated: the header needs {8 + length} bytes, the file has {size}")
        text = file.read(length)
    entries = [
        _entry(name, fields, path, 8 + length)
        for name, fields in _parse(text).items()
        if name != "__metadata__"
    ]
    _check_extent(entries, 8 + length, size)
    return {entry.name: entry for entry in entries}


def _parse(text: bytes) -> dict[str, Any]:
    try:
        parsed = parse_json(text, _unique)
    except ValueError as fault:
        raise _Bad(f"corrupt: the header is not JSON ({fault})") from None
    if not isinstance(parsed, dict):
        raise _Bad("corrupt: the header is not a JSON object")
    return parsed


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _entry(name: str, fields: object, path: Path, base: int) -> Entry:
    if not isinstance(fields, dict):
        raise _Bad(f"corrupt: the header entry of {name} is not an object")
    dtype, shape, offsets = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _Bad(f"corrupt or too new: {name} has the unknown dtype {dtype!r}")
    if not _naturals(shape) or len(shape) > MOST_SIZES or max(shape, default=0) > LARGEST_SIZE:
        raise _Bad(f"corrupt: {name} has the shape {shape!r}")
    if not _naturals(offsets) or len(offsets) != 2 or max(offsets) > LARGEST_SIZE:
        raise _Bad(f"corrupt: {name} has the offsets {offsets!r}")
    begin, end = offsets
    if (end - begin) * 8 != math.prod(shape) * BITS[dtype]:
        raise _Bad(f"corrupt: {name}, {dtype} {list(shape)}, cannot take {end - begin} bytes")
    return Entry(name, dtype, tuple(shape), path, base + begin, end - begin)


def _naturals(values: object) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _check_extent(entries: list[Entry], base: int, size: int) -> None:
    """Every byte behind the header belongs to exactly one tensor."""
    end = base
    for entry in sorted(entries, key=lambda entry: (entry.offset, entry.nbytes)):
        if entry.offset != end:
            word = "overlaps the tensor before it" if entry.offset < end else "leaves a gap"
            raise _Bad(f"corrupt: {entry.name} {word}")
        end += entry.nbytes
    if end > size:
        raise _Bad(f"truncated: {end - size} of {end} bytes are missing")
    if end < size:
        raise _Bad(f"corrupt: {size - end} bytes at its end belong to no tensor")
