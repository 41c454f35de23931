"""MLC folders: shards of raw bytes, and an index that says what lies where.

Written from mlc-ai/mlc-llm 79d603f: `quantization/group_quantization.py` (codes low bits first in
words of 32 bits, as many as fit; a value is (code - (2^(bits-1) - 1)) * scale, rounded to the
model's type), `quantization/quantization.py` (names such as q4f16_1: bits, model's type, and 0 for
linears that are stored transposed), `loader/*` (rows of joined linears; Gemma's norms plus one),
and from tvm's `tvmjs.py` (the index).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.refusal import refuse
from qconvert.formats.source import Source
from qconvert.runtimes.second.reading import HEAD, Floats, Lazy

_SCHEME = re.compile(r"q(?P<bits>[0-9])(?P<type>f16|bf16|f32)(?:_(?P<form>[0-9]))?")
JOINED: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"),
                    (("qkv_proj", "c_attn"), ("q_proj", "k_proj", "v_proj"))),
    **dict.fromkeys(("gate_proj", "up_proj"), (("gate_up_proj",), ("gate_proj", "up_proj"))),
}  # fmt: skip
"""Last part of a linear's name -> what it may be joined as, and with which, in order of rows."""
FRONTS = ("", "language_model.")
PLUS_ONE = frozenset({"gemma", "gemma2", "gemma3_text"})
RAW = {"uint32": "<u4", "float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}


@dataclass(frozen=True, slots=True)
class Record:
    """One stored array, still in its file."""

    shape: tuple[int, ...]
    kind: str  # of RAW
    file: NDArray[np.uint8]
    start: int

    def raw(self) -> NDArray[Any]:
        count = int(np.prod(self.shape))
        kind = np.dtype(RAW[self.kind])
        part = self.file[self.start : self.start + count * kind.itemsize]
        return np.frombuffer(part, kind).reshape(self.shape)

    def floats(self) -> Floats:
        raw = self.raw()
        if self.kind == "bfloat16":
            return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return raw.astype(np.float32)


def weights(path: Path, source: Source) -> Mapping[str, Floats]:
    """As `reading.second_weights`."""
    config = json.loads((path / "mlc-chat-config.json").read_text("utf-8"))
    match = _SCHEME.fullmatch(str(config["quantization"]))
    if match is None:
        raise refuse(f"no group quantization is called {config['quantization']!r}")
    records = _records(path)
    shapes = {one.name: one.shape for one in source.tensors}
    if source.tied:
        table = next(one for one in source.tensors if one.name.endswith("embed_tokens.weight"))
        shapes[HEAD] = table.shape
    found: dict[str, Callable[[], Floats]] = {}
    for name, shape in shapes.items():
        place = _place(name, shapes, records)
        if place is not None:
            less = source.model_type in PLUS_ONE and name.endswith("norm.weight")
            found[name] = partial(_read, records, match, *place, shape, less)
    return Lazy(found)


def _records(path: Path) -> dict[str, Record]:
    index = path / "tensor-cache.json"
    if not index.is_file():
        index = path / "ndarray-cache.json"
    found = {}
    for shard in json.loads(index.read_text("utf-8"))["records"]:
        file = np.memmap(path / shard["dataPath"], np.uint8, "r").view(np.ndarray)
        for one in shard["records"]:
            narrowed = one["format"] == "f32-to-bf16" and one["dtype"] == "float32"
            kind = "bfloat16" if narrowed else one["dtype"]
            found[one["name"]] = Record(tuple(one["shape"]), kind, file, one["byteOffset"])
    return found


def _place(
    name: str, shapes: Mapping[str, tuple[int, ...]], records: Mapping[str, Record]
) -> tuple[str, int] | None:
    """The stored name of a tensor, without what quantization adds, and its first row."""
    whole, _, part = name.rpartition(".")
    above, dot, last = whole.rpartition(".")
    for front in FRONTS:
        if _is_stored(f"{front}{name}", records):
            return f"{front}{name}", 0
        names, members = JOINED.get(last, ((), ()))
        for joined in names:
            held = f"{front}{above}{dot}{joined}.{part}"
            if _is_stored(held, records):
                before = members[: members.index(last)]
                return held, sum(shapes[f"{above}{dot}{one}.{part}"][0] for one in before)
    return None


def _is_stored(name: str, records: Mapping[str, Record]) -> bool:
    return name in records or f"{name.removesuffix('weight')}q_weight" in records


def _read(
    records: Mapping[str, Record],
    scheme: re.Match[str],
    name: str,
    start: int,
    shape: tuple[int, ...],
    less: bool,
) -> Floats:
    rows = slice(start, start + shape[0])
    if name in records:
        values = records[name].floats()[rows]
        return values - np.float32(1) if less else values
    module = name.removesuffix("weight")
    words, scale = records[f"{module}q_weight"].raw(), records[f"{module}q_scale"].floats()
    if scheme["form"] == "0" and not module.endswith("embed_tokens."):
        words, scale = words.T, scale.T
    return _decoded(words[rows], scale[rows], int(scheme["bits"]), scheme["type"], shape[1])


def _decoded(words: NDArray[Any], scale: Floats, bits: int, kind: str, cols: int) -> Floats:
    per = 32 // bits
    wide = words.shape[1] * per
    codes = np.empty((len(words), wide), np.float32)
    for place in range(per):
        codes[:, place::per] = words >> np.uint32(bits * place) & np.uint32((1 << bits) - 1)
    codes -= np.float32((1 << (bits - 1)) - 1)
    grouped = codes.reshape(*scale.shape, -1)
    grouped *= scale[..., None]
    return ROUNDED[kind](np.ascontiguousarray(codes[:, :cols]))


def _half(values: Floats) -> Floats:
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float32)


def _brain(values: Floats) -> Floats:
    """The nearest bfloat16, ties to even."""
    bits = values.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + np.uint32(0x7FFF) + odd) & np.uint32(0xFFFF0000)).view(np.float32)


ROUNDED: Mapping[str, Callable[[Floats], Floats]] = {
    "f16": _half, "bf16": _brain, "f32": lambda values: values,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Second:
    name: str = "mlc"
    targets: frozenset[str] = frozenset({"mlc"})

    def weights(self, path: Path, source: Source) -> Mapping[str, Floats]:
        return weights(path, source)


SECOND = _Second()
