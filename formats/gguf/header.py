"""The GGUF header: keys, values and tensor infos, to bytes and back.

Format: ggml `docs/gguf.md`, version 3, little-endian. Reading trusts nothing: every count is held
against the bytes that are left before anything is made of it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf.constants import (
    GGML_QUANT_SIZES,
    GGUF_DEFAULT_ALIGNMENT,
    GGUF_MAGIC,
    GGUF_VERSION,
    GGMLQuantizationType,
    GGUFValueType,
)

from qconvert.formats.refusal import Refused, refuse

ALIGNMENT = GGUF_DEFAULT_ALIGNMENT
MAX_NAME = 63  # GGML_MAX_NAME - 1: llama.cpp refuses longer tensor names
MAX_DIMS = 4
MAX_STRINGS = 1 << 21  # in one array; the largest vocabularies have 2^18
MAX_HEADER = 1 << 28  # bytes before the data; of a vocabulary of 2^18, 2^24
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 17
MAX_SIZE = 1 << 48  # of one dimension: what is computed of it is then small
MAX_SHOWN = 80  # characters of a name from a file in a message
_SCALARS = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One key of the metadata. `sub_kind` is the element's kind where `kind` is ARRAY."""

    key: str
    value: Any
    kind: GGUFValueType
    sub_kind: GGUFValueType | None = None


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as the header lists it. `offset` counts from the start of the data."""

    name: str
    shape: tuple[int, ...]  # [out, in]; the file has it reversed
    type: GGMLQuantizationType
    offset: int

    @property
    def nbytes(self) -> int:
        return tensor_bytes(self.shape, self.type)


@dataclass(frozen=True, slots=True)
class Header:
    entries: dict[str, Entry]
    tensors: dict[str, TensorInfo]
    data_start: int


def padded(size: int, alignment: int = ALIGNMENT) -> int:
    """`size` rounded up to the alignment."""
    return -(-size // alignment) * alignment


def tensor_bytes(shape: Sequence[int], kind: GGMLQuantizationType) -> int:
    """Bytes of a tensor; its rows must be whole blocks."""
    block, size = GGML_QUANT_SIZES[kind]
    count = 1
    for length in shape:
        count *= length
    return count // block * size


def encode_header(entries: Iterable[Entry], tensors: Sequence[TensorInfo]) -> bytes:
    """Everything before the data, padded to the alignment."""
    listed = tuple(entries)
    out = bytearray(struct.pack("<IIQQ", GGUF_MAGIC, GGUF_VERSION, len(tensors), len(listed)))
    for entry in listed:
        out += _string(entry.key)
        out += struct.pack("<I", entry.kind)
        out += _value(entry)
    for info in tensors:
        out += _string(info.name)
        out += struct.pack("<I", len(info.shape))
        out += struct.pack(f"<{len(info.shape)}Q", *reversed(info.shape))
        out += struct.pack("<IQ", info.type, info.offset)
    out += bytes(padded(len(out)) - len(out))
    return bytes(out)


def _string(text: str | bytes) -> bytes:
    raw = text.encode("utf-8") if isinstance(text, str) else bytes(text)
    return struct.pack("<Q", len(raw)) + raw


def _value(entry: Entry) -> bytes:
    if entry.kind is GGUFValueType.STRING:
        return _string(entry.value)
    if entry.kind is not GGUFValueType.ARRAY:
        return np.asarray(entry.value, dtype=_SCALARS[entry.kind]).tobytes()
    if entry.sub_kind is None:
        raise ValueError(f"{entry.key}: an array needs the kind of its elements")
    head = struct.pack("<IQ", entry.sub_kind, len(entry.value))
    if entry.sub_kind is GGUFValueType.STRING:
        return head + b"".join(map(_string, entry.value))
    return head + np.asarray(entry.value, dtype=_SCALARS[entry.sub_kind]).tobytes()


class _Cursor:
    """Reads forward through untrusted bytes."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.at = data[:MAX_HEADER], 0
        self.whole = len(data) <= MAX_HEADER
        self.strings = 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, size: int) -> memoryview:
        if size > self.left:
            end = "the end of the file" if self.whole else f"{MAX_HEADER:,} bytes"
            raise refuse(f"the header reaches past {end}")
        self.at += size
        return self.data[self.at - size : self.at]

    def integer(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def string(self) -> str:
        return bytes(self.take(self.integer(8))).decode("utf-8", errors="replace")

    def numbers(self, kind: GGUFValueType, count: int) -> np.ndarray[Any, Any]:
        dtype = np.dtype(_SCALARS[kind])
        raw = bytes(self.take(count * dtype.itemsize))
        if kind is GGUFValueType.BOOL:
            return np.frombuffer(raw, dtype=np.uint8).astype(np.bool_)
        return np.frombuffer(raw, dtype=dtype)


def decode_header(data: memoryview) -> Header:
    """Read and check a header. `Refused` says what is wrong with it."""
    cursor = _Cursor(data)
    if len(data) < 24 or cursor.integer(4) != GGUF_MAGIC:
        raise refuse("it does not begin as a GGUF file does")
    version = cursor.integer(4)
    if version != GGUF_VERSION:
        raise refuse(f"GGUF version {version} is not known", f"version {GGUF_VERSION} is")
    tensor_count, entry_count = cursor.integer(8), cursor.integer(8)
    if tensor_count * 32 + entry_count * 13 > cursor.left:
        raise refuse(f"{tensor_count} tensors and {entry_count} keys do not fit in the file")
    if tensor_count > MAX_TENSORS or entry_count > MAX_KEYS:
        raise refuse(f"{tensor_count} tensors and {entry_count} keys are more than any model has")
    entries: dict[str, Entry] = {}
    for _ in range(entry_count):
        entry = _read_entry(cursor)
        if entry.key in entries:
            raise refuse(f"key {entry.key[:MAX_SHOWN]!r} is there twice")
        entries[entry.key] = entry
    infos = [_read_info(cursor) for _ in range(tensor_count)]
    alignment = _alignment(entries)
    start = padded(cursor.at, alignment)
    tensors = {info.name: info for info in infos}
    if len(tensors) != len(infos):
        raise refuse("two tensors have the same name")
    _check_extents(infos, max(0, len(data) - start), alignment)
    return Header(entries, tensors, start)


def _kind(number: int) -> GGUFValueType:
    try:
        return GGUFValueType(number)
    except ValueError:
        raise refuse(f"unknown kind of value {number}") from None


def _read_entry(cursor: _Cursor) -> Entry:
    key = cursor.string()
    kind = _kind(cursor.integer(4))
    if kind is GGUFValueType.STRING:
        return Entry(key, cursor.string(), kind)
    if kind is not GGUFValueType.ARRAY:
        return Entry(key, cursor.numbers(kind, 1)[0].item(), kind)
    sub_kind, count = _kind(cursor.integer(4)), cursor.integer(8)
    if sub_kind is GGUFValueType.ARRAY:
        raise refuse(f"key {key[:MAX_SHOWN]!r} holds arrays in an array")
    if sub_kind is not GGUFValueType.STRING:
        return Entry(key, cursor.numbers(sub_kind, count), kind, sub_kind)
    cursor.strings += count
    if cursor.strings > MAX_STRINGS or count * 8 > cursor.left:
        raise refuse(f"key {key[:MAX_SHOWN]!r} claims {count} strings")
    return Entry(key, tuple(cursor.string() for _ in range(count)), kind, sub_kind)


def _read_info(cursor: _Cursor) -> TensorInfo:
    name = cursor.string()
    dims = cursor.integer(4)
    if not name or not 1 <= dims <= MAX_DIMS:
        raise refuse(f"tensor {name[:MAX_SHOWN]!r} has {dims} dimensions")
    shape = tuple(cursor.integer(8) for _ in range(dims))[::-1]
    if not all(0 < size <= MAX_SIZE for size in shape):
        raise refuse(f"tensor {name[:MAX_SHOWN]!r} has the shape {list(shape)}")
    number, offset = cursor.integer(4), cursor.integer(8)
    try:
        kind = GGMLQuantizationType(number)
    except ValueError:
        raise refuse(f"tensor {name[:MAX_SHOWN]!r} is of an unknown type {number}") from None
    if shape[-1] % GGML_QUANT_SIZES[kind][0]:
        raise refuse(
            f"tensor {name[:MAX_SHOWN]!r}: rows of {shape[-1]} are not whole blocks of {kind.name}"
        )
    return TensorInfo(name, shape, kind, offset)


def _alignment(entries: dict[str, Entry]) -> int:
    entry = entries.get("general.alignment")
    if entry is None:
        return ALIGNMENT
    value = entry.value
    if not isinstance(value, int) or not 8 <= value <= 1 << 20 or value & (value - 1):
        raise refuse(f"general.alignment is {value!r}")
    return value


def _check_extents(infos: Sequence[TensorInfo], size: int, alignment: int) -> None:
    end = 0
    for info in sorted(infos, key=lambda info: info.offset):
        if info.offset % alignment:
            raise refuse(f"tensor {info.name!r} is not aligned")
        if info.offset < end:
            raise refuse(f"tensor {info.name!r} overlaps another one")
        end = info.offset + info.nbytes
        if end > size:
            raise refuse(
                f"tensor {info.name!r} reaches past the end of the file",
                "the file is truncated: copy or convert it again",
            )


def described(error: Refused, path: object) -> Refused:
    """The same refusal, naming the file."""
    first, *rest = error.reasons
    named = refuse(f"{path} cannot be read as GGUF: {first.problem}", first.remedy)
    return Refused(*named.reasons, *rest)
