"""How an output is cut into files: llama.cpp's convention, `NAME-00001-of-00003.gguf`.

Source: llama.cpp `tools/gguf-split/gguf-split.cpp`: tensors in order, all metadata in the first
file, three `split.*` keys in each. The limit holds for whole files here, headers included.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gguf.constants import GGMLQuantizationType, GGUFValueType, Keys

from qconvert.formats.gguf.header import Entry, TensorInfo, encode_header, padded
from qconvert.formats.refusal import Reason, raise_if_any, refuse
from qconvert.formats.target import OutputTensor

MAX_FILES = 65535  # split.count is a uint16
_SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")


@dataclass(frozen=True, slots=True)
class Shard:
    """One file: its header, and which of the plan's tensors follow, [first, stop)."""

    header: bytes
    first: int
    stop: int
    size: int  # of the whole file, bytes


def plan_shards(
    entries: Sequence[Entry], tensors: Sequence[OutputTensor], limit: int | None
) -> tuple[Shard, ...]:
    """Cut the tensors into files of at most `limit` bytes, `Refused` where one alone is larger."""
    if limit is None:
        return (_shard(entries, tensors, 0, len(tensors)),)
    empty = len(encode_header([*entries, *_split_entries(0, 1, 0)], ()))
    starts = _cut(empty, tensors, limit)
    if len(starts) == 1:
        return (_shard(entries, tensors, 0, len(tensors)),)
    if len(starts) > MAX_FILES:
        raise refuse(f"{len(starts)} files: at most {MAX_FILES} are possible", "allow larger files")
    bounds = [*starts, len(tensors)]
    return tuple(
        _shard(
            [*(entries if number == 0 else ()), *_split_entries(number, len(starts), len(tensors))],
            tensors, bounds[number], bounds[number + 1],
        )
        for number in range(len(starts))
    )  # fmt: skip


def _cut(first_header: int, tensors: Sequence[OutputTensor], limit: int) -> list[int]:
    """Index of the first tensor of each file."""
    starts, size = [0], first_header
    later = len(encode_header(_split_entries(0, 1, 0), ()))
    too_large: list[Reason] = []
    for index, tensor in enumerate(tensors):
        need = padded(tensor.nbytes) + _info_bytes(tensor)
        if size + need > limit and index > starts[-1]:
            starts.append(index)
            size = later
        if size + need > limit:
            too_large.append(
                Reason(
                    f"{tensor.name} makes a file of {size + need} bytes, {limit} are allowed",
                    f"allow files of at least {size + need} bytes",
                )
            )
        size += need
    raise_if_any(too_large[:1])
    return starts


def _info_bytes(tensor: OutputTensor) -> int:
    return 8 + len(tensor.name.encode("utf-8")) + 4 + 8 * len(tensor.shape) + 4 + 8


def _split_entries(number: int, count: int, tensors: int) -> tuple[Entry, ...]:
    return (
        Entry(Keys.Split.LLM_KV_SPLIT_NO, number, GGUFValueType.UINT16),
        Entry(Keys.Split.LLM_KV_SPLIT_COUNT, count, GGUFValueType.UINT16),
        Entry(Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT, tensors, GGUFValueType.INT32),
    )


def _shard(
    entries: Sequence[Entry], tensors: Sequence[OutputTensor], first: int, stop: int
) -> Shard:
    infos, offset = [], 0
    for tensor in tensors[first:stop]:
        kind = GGMLQuantizationType[tensor.dtype]
        infos.append(TensorInfo(tensor.name, tensor.shape, kind, offset))
        offset += padded(tensor.nbytes)
    header = encode_header(entries, infos)
    return Shard(header, first, stop, len(header) + offset)


def shard_paths(path: Path, count: int) -> tuple[Path, ...]:
    """The files for an output at `path`: itself, or one per shard beside it."""
    if count == 1:
        return (path,)
    stem = path.name.removesuffix(".gguf")
    return tuple(
        path.with_name(f"{stem}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)
    )


def find_files(path: Path) -> tuple[Path, ...]:
    """All files of the output that `path` names: a file, a shard of it, or what it was cut from."""
    if not path.exists() and path.parent.is_dir():
        path = next(_first_shards(path), path)
    match = _SHARD.match(path.name)
    if match is None or int(match["count"]) < 2:
        return (path,)
    return shard_paths(path.with_name(f"{match['stem']}.gguf"), int(match["count"]))


def _first_shards(path: Path) -> Iterator[Path]:
    stem = path.name.removesuffix(".gguf")
    for found in sorted(path.parent.iterdir()):
        match = _SHARD.match(found.name)
        if match is not None and match["stem"] == stem and int(match["number"]) == 1:
            yield found
