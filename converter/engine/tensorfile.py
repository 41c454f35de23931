"""Safetensors files that carry a digest of themselves, written and read by rows.

The digest stands in the metadata under "sha256": of the header as it is with 64 zeros in that
place, followed by the sha256 of each tensor's bytes in the order of the file. So a change of any
bit is noticed, the metadata's included, and several tensors may grow at the same time.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.refusal import Refused, refuse
from qconvert.formats.safetensors_header import Entry, read_header

NUMPY: Mapping[str, np.dtype[Any]] = {
    "U8": np.dtype("<u1"), "I8": np.dtype("<i1"), "U16": np.dtype("<u2"), "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"), "I32": np.dtype("<i4"), "F16": np.dtype("<f2"), "F32": np.dtype("<f4"),
    "BF16": np.dtype("<u2"),  # numpy has no bfloat16: the upper half of a float32
}  # fmt: skip
NAMES = {kind: name for name, kind in NUMPY.items() if name != "BF16"}
_ZEROS = "0" * 64
_AT_ONCE = 1 << 24  # bytes that a check holds


@dataclass(frozen=True, slots=True)
class Form:
    """What a tensor of the file will be."""

    dtype: str  # of safetensors: "U8"
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * NUMPY[self.dtype].itemsize


def form_of(values: NDArray[Any]) -> Form:
    """The form of an array as it is; bfloat16 cannot be told from its bits, so never that."""
    return Form(NAMES[values.dtype.newbyteorder("<")], values.shape)


class TensorWriter:
    """Fills a file with tensors that are all declared first; each grows by rows, in any turns."""

    def __init__(
        self, file: BinaryIO, forms: Mapping[str, Form], metadata: Mapping[str, str]
    ) -> None:
        self._file, self._forms = file, dict(forms)
        self._header = _header(self._forms, metadata)
        self._starts, at = {}, len(self._header)
        for name, form in self._forms.items():
            self._starts[name] = at
            at += form.nbytes
        self._written = dict.fromkeys(self._forms, 0)
        self._digests = {name: hashlib.sha256() for name in self._forms}
        file.write(self._header)

    def append(self, name: str, values: NDArray[Any]) -> None:
        """The next rows of `name`, or all of a vector; `ValueError` if they cannot be."""
        form, done = self._forms[name], self._written[name]
        raw = np.ascontiguousarray(values)
        if raw.dtype != NUMPY[form.dtype] or raw.shape[1:] != form.shape[1:]:
            raise ValueError(f"{name}: {raw.dtype} {raw.shape}, declared {form}")
        if done + raw.nbytes > form.nbytes:
            raise ValueError(f"{name}: more rows than the {form.shape[0]} declared")
        data = raw.reshape(-1).view(np.uint8).data
        self._file.seek(self._starts[name] + done)
        self._file.write(data)
        self._digests[name].update(data)
        self._written[name] = done + raw.nbytes

    def finish(self) -> None:
        """Set the digest; `ValueError` unless every tensor is whole."""
        short = [n for n, form in self._forms.items() if self._written[n] < form.nbytes]
        if short:
            raise ValueError(f"{len(short)} tensors are not whole, the first is {short[0]}")
        digest = _digest(self._header, [one.digest() for one in self._digests.values()])
        self._file.seek(self._header.index(_ZEROS.encode("ascii")))
        self._file.write(digest.encode("ascii"))


def _header(forms: Mapping[str, Form], metadata: Mapping[str, str]) -> bytes:
    """Length, JSON and padding. The digest's place comes first, so that it is found again."""
    fields: dict[str, Any] = {"__metadata__": {"sha256": _ZEROS, **metadata}}
    at = 0
    for name, form in forms.items():
        end = at + form.nbytes
        fields[name] = {"dtype": form.dtype, "shape": form.shape, "data_offsets": (at, end)}
        at = end
    text = json.dumps(fields, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _digest(header: bytes, tensors: list[bytes]) -> str:
    return hashlib.sha256(b"".join([header, *tensors])).hexdigest()


@dataclass(frozen=True, slots=True)
class TensorFile:
    """A file of `TensorWriter` whose every byte has been checked."""

    path: Path
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows [start, stop), of a vector its elements; bfloat16 as its bits."""
        entry = self.entries[name]
        kind, count = NUMPY[entry.dtype], entry.shape[0]
        stop = count if stop is None else min(stop, count)
        row = entry.nbytes // count if count else 0
        found = np.empty((stop - start, *entry.shape[1:]), kind)
        with self.path.open("rb") as file:
            file.seek(entry.offset + start * row)
            got = file.readinto(found.reshape(-1).view(np.uint8).data)
        if got != found.nbytes:
            raise refuse(f"{self.path} became shorter while it was read")
        return found


def open_tensors(path: Path, remedy: str) -> TensorFile:
    """Check all of the file; `Refused`, with `remedy`, when it is not what was written."""
    try:
        entries = read_header(path)
        header, metadata = _stored_header(path)
        found = _digest(header, _tensor_digests(path, entries))
    except Refused as refused:
        raise refuse(f"{path} is damaged: {refused.reasons[0].problem}", remedy) from None
    except OSError as fault:
        raise refuse(f"{path} cannot be read: {fault.strerror}", remedy) from fault
    if found != metadata.get("sha256"):
        raise refuse(f"{path} is damaged: its bytes are not those that were written", remedy)
    return TensorFile(path, entries, metadata)


def _stored_header(path: Path) -> tuple[bytes, dict[str, str]]:
    """The header with zeros for the digest, and the metadata."""
    with path.open("rb") as file:
        head = file.read(8)
        text = file.read(int.from_bytes(head, "little"))
    metadata = json.loads(text).get("__metadata__")
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise refuse("it has no metadata")
    digest = metadata.get("sha256", "").encode("utf-8")
    if len(digest) != len(_ZEROS):
        raise refuse("it has no digest")
    return head + text.replace(digest, _ZEROS.encode("ascii"), 1), metadata


def _tensor_digests(path: Path, entries: Mapping[str, Entry]) -> list[bytes]:
    """sha256 of each tensor, in the order of the file."""
    found = []
    buffer = bytearray(min(_AT_ONCE, path.stat().st_size))
    with path.open("rb", buffering=0) as file:
        for entry in sorted(entries.values(), key=lambda entry: entry.offset):
            file.seek(entry.offset)
            digest, left = hashlib.sha256(), entry.nbytes
            while left:
                got = file.readinto(memoryview(buffer)[: min(left, len(buffer))])
                if not got:
                    raise refuse("it became shorter while it was read")
                digest.update(memoryview(buffer)[:got])
                left -= got
            found.append(digest.digest())
    return found
