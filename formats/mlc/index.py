"""Reads the index of an MLC folder, and holds every shard against it.

MLC's loader compares sizes alone: a byte that was changed on the way is loaded without a word. Here
the md5 of each shard is compared, too.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.careful import parse_json, read_file
from qconvert.formats.refusal import Reason, raise_if_any, refuse

INDICES = ("tensor-cache.json", "ndarray-cache.json")
"""The name that loaders look for, and the one that older ones do."""
AGAIN = "copy or convert it again"
KINDS: Mapping[str, str] = {"uint32": "<u4", "float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}
FORMATS = ("raw", "f32-to-bf16")
_AT_ONCE = 1 << 20
_MOST_SIZES = 8  # in a shape
_LARGEST = 1 << 48  # of a size or an offset: products stay computable


@dataclass(frozen=True, slots=True)
class Found:
    """A stored tensor. `kind` is that of the bytes: bfloat16, too, where float32 is stored so."""

    name: str
    shape: tuple[int, ...]
    kind: str
    shard: Path
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(KINDS[self.kind]).itemsize

    def array(self, mapped: NDArray[np.uint8]) -> NDArray[Any]:
        """The values in a mapped shard; bfloat16 as uint16."""
        part = mapped[self.offset : self.offset + self.nbytes]
        found: NDArray[Any] = np.frombuffer(part, KINDS[self.kind]).reshape(self.shape)
        return found


def read_index(folder: Path) -> tuple[dict[str, Found], tuple[Path, ...]]:
    """Stored tensors by name, and the files that were read: shards, then indices. `Refused` with
    every fault that is found."""
    indices = [folder / name for name in INDICES if os.path.lexists(folder / name)]
    if not indices:
        raise refuse(f"no {INDICES[0]} in {folder}", "an MLC folder holds one")
    try:
        texts = [read_file(path) for path in indices]
    except FileNotFoundError as fault:
        raise refuse(f"{fault.filename} cannot be read: {fault.strerror}", AGAIN) from None
    reasons = [
        Reason(f"{path.name} says something else than {indices[0].name}", AGAIN)
        for path, text in zip(indices[1:], texts[1:], strict=True)
        if text != texts[0]
    ]
    found: dict[str, Found] = {}
    shards: list[Path] = []
    for one in _shard_entries(texts[0], indices[0].name):
        shard, problems = _shard(folder, one)
        reasons += problems
        if shard is None:
            continue
        if shard in shards:
            reasons.append(Reason(f"{shard.name} is listed twice", AGAIN))
            continue
        shards.append(shard)
        for entry in _list(one.get("records")):
            record, problem = _record(shard, entry, _int(one.get("nbytes")))
            if problem:
                reasons.append(Reason(f"{shard.name}: {problem}", AGAIN))
            elif record is not None and record.name in found:
                reasons.append(Reason(f"{record.name} is stored twice", AGAIN))
            elif record is not None:
                found[record.name] = record
    raise_if_any(reasons)
    return found, (*shards, *indices)


def _shard_entries(text: bytes, name: str) -> list[Mapping[str, Any]]:
    try:
        parsed = parse_json(text)
    except ValueError as fault:
        raise refuse(f"{name} is not JSON: {fault}", AGAIN) from None
    entries = _list(parsed.get("records")) if isinstance(parsed, dict) else []
    if not entries:
        raise refuse(f"{name} lists no shards", AGAIN)
    return entries


def _list(value: Any) -> list[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _int(value: Any) -> int:
    """A size or an offset; -1 for what is none."""
    good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST
    return int(value) if good else -1


def _shard(folder: Path, entry: Mapping[str, Any]) -> tuple[Path | None, list[Reason]]:
    """The file of a shard, and what is wrong with it; None where it cannot be looked into."""
    name = entry.get("dataPath")
    if not isinstance(name, str) or name != Path(name).name or "\\" in name:
        return None, [Reason(f"the index names a file outside the folder: {name!r}", AGAIN)]
    path = folder / name
    if entry.get("format") != "raw-shard":
        return None, [Reason(f"{name} is of the unknown format {entry.get('format')!r}", AGAIN)]
    if not path.is_file():
        return None, [Reason(f"{name} is missing, though the index lists it", AGAIN)]
    size, wanted = path.stat().st_size, _int(entry.get("nbytes"))
    if size != wanted:
        return path, [Reason(f"{name} has {size:,} bytes, the index says {wanted:,}", AGAIN)]
    if _md5(path) != entry.get("md5sum"):
        return path, [Reason(f"{name} is damaged: its md5 is not that of the index", AGAIN)]
    return path, []


def _md5(path: Path) -> str:
    found = hashlib.md5(usedforsecurity=False)
    try:
        with path.open("rb") as file:
            while piece := file.read(_AT_ONCE):
                found.update(piece)
    except OSError as fault:
        raise refuse(f"{path} cannot be read: {fault.strerror}") from fault
    return found.hexdigest()


def _record(shard: Path, entry: Mapping[str, Any], size: int) -> tuple[Found | None, str]:
    """A record, or what is wrong with it."""
    name, dtype, form = (entry.get(key) for key in ("name", "dtype", "format"))
    shape = entry.get("shape")
    few = isinstance(shape, list) and 0 < len(shape) <= _MOST_SIZES
    sizes = [_int(one) for one in shape] if isinstance(shape, list) and few else [-1]
    if not isinstance(name, str) or min(sizes) <= 0:
        return None, f"a record has no name or shape: {name!r}"
    if not isinstance(dtype, str) or dtype not in KINDS or form not in FORMATS:
        return None, f"{name} is {dtype!r} in the format {form!r}, which MLC's schemes have not"
    kind = "bfloat16" if dtype == "float32" and form == "f32-to-bf16" else dtype
    found = Found(name, tuple(sizes), kind, shard, _int(entry.get("byteOffset")))
    if found.nbytes != _int(entry.get("nbytes")):
        return None, f"{name} has {entry.get('nbytes')} bytes, its shape wants {found.nbytes}"
    if found.offset < 0 or found.offset + found.nbytes > size:
        return None, f"{name} reaches beyond the file"
    return found, ""
