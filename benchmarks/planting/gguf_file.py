"""The parts of a GGUF file, found by gguf-py's reader; written again with some of them changed."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np

ALIGNMENT = 32
TYPE = gguf.GGUFValueType
SCALARS: Mapping[gguf.GGUFValueType, str] = {
    TYPE.UINT8: "<B", TYPE.INT8: "<b", TYPE.UINT32: "<I", TYPE.INT32: "<i", TYPE.FLOAT32: "<f",
    TYPE.BOOL: "<?", TYPE.UINT64: "<Q", TYPE.INT64: "<q", TYPE.FLOAT64: "<d",
    TYPE.UINT16: "<H", TYPE.INT16: "<h",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of the file."""

    shape: tuple[int, ...]  # ggml's order: columns first
    type: int
    offset: int  # in the file
    nbytes: int


@dataclass(frozen=True, slots=True)
class Parts:
    version: int
    fields: Mapping[str, bytes]  # key -> the whole field, as it lies in the file
    values: Mapping[str, Any]  # of all but arrays
    types: Mapping[str, Sequence[gguf.GGUFValueType]]
    arrays: Mapping[str, Any]  # key -> list
    tensors: Mapping[str, Entry]


def parts_of(path: Path) -> Parts:
    """Parsed once for all copies that are links to the same file."""
    told = path.stat()
    return _parts(told.st_ino, told.st_mtime_ns, path)


@lru_cache(maxsize=4)
def _parts(inode: int, changed: int, path: Path) -> Parts:
    reader = gguf.GGUFReader(path)
    fields: dict[str, bytes] = {}
    values: dict[str, Any] = {}
    arrays: dict[str, Any] = {}
    own = {key: one for key, one in reader.fields.items() if not key.startswith("GGUF.")}
    for key, one in own.items():
        size = sum(part.nbytes for part in one.parts)
        fields[key] = reader.data[one.offset : one.offset + size].tobytes()
        (arrays if one.types[0] is TYPE.ARRAY else values)[key] = one.contents()
    tensors = {
        one.name: Entry(
            tuple(int(n) for n in one.shape), int(one.tensor_type), int(one.data_offset),
            int(one.n_bytes),
        )
        for one in reader.tensors
    }  # fmt: skip
    version = int(reader.fields["GGUF.version"].contents())
    types = {key: tuple(one.types) for key, one in own.items()}
    return Parts(version, fields, values, types, arrays, tensors)


def string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def field(key: str, value: Any, types: Sequence[gguf.GGUFValueType]) -> bytes:
    """A field's bytes: key, type, value."""
    start = string(key) + struct.pack("<I", types[0])
    if types[0] is not TYPE.ARRAY:
        return start + _scalar(value, types[0])
    inner = types[-1]
    items = b"".join(_scalar(one, inner) for one in value)
    return start + struct.pack("<IQ", inner, len(value)) + items


def _scalar(value: Any, kind: gguf.GGUFValueType) -> bytes:
    return string(value) if kind is TYPE.STRING else struct.pack(SCALARS[kind], value)


def write(
    parts: Parts,
    source: Path,
    fields: Mapping[str, bytes],
    tensors: Mapping[str, Entry],
    added: Mapping[str, bytes] | None = None,
) -> bytes:
    """A whole file of these fields and tensors; data comes from `source`, or from `added`."""
    data = np.memmap(source, np.uint8, "r")
    infos, body, at = b"", [], 0
    for name, one in tensors.items():
        dims = struct.pack(f"<I{len(one.shape)}Q", len(one.shape), *one.shape)
        infos += string(name) + dims + struct.pack("<IQ", one.type, at)
        held = (added or {}).get(name) or data[one.offset : one.offset + one.nbytes].tobytes()
        padding = -len(held) % ALIGNMENT
        body += [held, b"\0" * padding]
        at += len(held) + padding
    head = b"GGUF" + struct.pack("<IQQ", parts.version, len(tensors), len(fields))
    head += b"".join(fields.values()) + infos
    return b"".join([head, b"\0" * (-len(head) % ALIGNMENT), *body])
