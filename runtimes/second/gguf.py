"""GGUF, read with the `gguf` package of llama.cpp's authors: its header, names and dequantization.

What the values are is all theirs. What their converter does to a model on the way in is undone
here, by what it says of each family (llama.cpp `conversion/{llama,gemma,gptneox,gpt2}.py`).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from gguf.constants import MODEL_ARCH_NAMES, GGUFValueType
from gguf.quants import dequantize
from gguf.tensor_mapping import get_tensor_name_map
from numpy.typing import NDArray

from qconvert.formats.refusal import refuse
from qconvert.formats.source import Source
from qconvert.runtimes.second.reading import HEAD, Floats, Lazy

AT_ONCE = 1 << 20  # weights: what lies between bytes and values stays in the cache
TWICE = frozenset({"gpt_neox"})
"""Families whose head llama.cpp wants stored, also where it is the embedding."""
ENDINGS = (".weight", ".bias")
_PART = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf")


class _Skipping(GGUFReader):
    """Theirs, but that arrays are stepped over: it makes an object of each token, which takes
    seconds for a vocabulary that is not looked at here."""

    def _get_field_parts(
        self, orig_offs: int, raw_type: int
    ) -> tuple[int, list[NDArray[Any]], list[int], list[GGUFValueType]]:
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        data = memoryview(self.data)  # type: ignore[arg-type]
        kind, count = struct.unpack_from("<IQ", data, orig_offs)
        at = orig_offs + 12
        single = self.gguf_scalar_to_np.get(GGUFValueType(kind))
        if single is not None:
            at += count * np.dtype(single).itemsize
        else:
            for _ in range(count):
                at += 8 + struct.unpack_from("<Q", data, at)[0]
        return at - orig_offs, [], [], [GGUFValueType.ARRAY]


Undo = Callable[[Floats, Mapping[str, Any]], Floats]


def weights(path: Path, source: Source) -> Mapping[str, Floats]:
    """As `reading.second_weights`. `Refused` for an architecture that the package does not know."""
    opened = [_Skipping(file) for file in _files(path)]
    stored = {tensor.name: tensor for one in opened for tensor in one.tensors}
    field = opened[0].get_field("general.architecture")
    told = None if field is None else field.contents()
    arch = next((arch for arch, name in MODEL_ARCH_NAMES.items() if name == told), None)
    if arch is None:
        raise refuse(f"the gguf package knows no architecture {told!r}")
    blocks = 1 + max((one.block for one in source.tensors if one.block is not None), default=0)
    names = get_tensor_name_map(arch, blocks)
    found: dict[str, Callable[[], Floats]] = {}
    for tensor in source.tensors:
        there = stored.get(_named(names, tensor.name) or "")
        if there is not None:
            found[tensor.name] = partial(_read, there, _undone(source.model_type, tensor.name),
                                         source.config)  # fmt: skip
    if source.tied and source.model_type not in TWICE and "output.weight" in stored:
        found[HEAD] = partial(_read, stored["output.weight"], None, source.config)
    return Lazy(found)


def _files(path: Path) -> Sequence[Path]:
    """All parts of a split file, in order; `path` may name any of them, or what they were made of:
    `NAME.gguf` of NAME-00001-of-00003.gguf."""
    if not path.exists():
        for one in sorted(path.parent.glob("*-00001-of-*.gguf")):
            match = _PART.fullmatch(one.name)
            if match is not None and match["stem"] == path.name.removesuffix(".gguf"):
                path = one
    match = _PART.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    return [path.with_name(f"{match['stem']}-{number:05d}-of-{count:05d}.gguf")
            for number in range(1, count + 1)]  # fmt: skip


def _named(names: Any, name: str) -> str | None:
    """A checkpoint's name as in the file. Their converter strips what multimodal models put in
    front of their text model, and gives GPT-2 the prefix that its own folders lack."""
    bare = re.sub(r"^(model\.)?language_model\.", "", name)
    tried = dict.fromkeys((name, bare, f"model.{bare}", f"transformer.{bare}"))
    hits = (names.get_name(one, try_suffixes=ENDINGS) for one in tried)
    return next((hit for hit in hits if hit is not None), None)


def _read(tensor: Any, undo: Undo | None, config: Mapping[str, Any]) -> Floats:
    """Values as the checkpoint stores them. GGUF counts dimensions from the innermost."""
    shape = tuple(int(size) for size in reversed(tensor.shape))
    rows = np.asarray(tensor.data)
    if len(shape) == 1:
        values = np.array(dequantize(rows, tensor.tensor_type), np.float32).reshape(shape)
    else:
        values = np.empty(shape, np.float32)
        step = max(1, AT_ONCE // max(shape[1], 1))
        for start in range(0, shape[0], step):
            part = dequantize(rows[start : start + step], tensor.tensor_type)
            values[start : start + step] = part
    return values if undo is None else undo(values, config)


@dataclass(frozen=True, slots=True)
class Change:
    """What the converter does to tensors with such names, undone."""

    families: frozenset[str]
    endings: tuple[str, ...]
    undo: Undo


def _undone(family: str, name: str) -> Undo | None:
    fitting = (one for one in CHANGES if family in one.families and name.endswith(one.endings))
    return next((one.undo for one in fitting), None)


def _heads(config: Mapping[str, Any], values: Floats) -> int:
    """Of the query. The size of a head is not always said, the count of query heads is."""
    count = config.get("num_attention_heads")
    if not isinstance(count, int) or count < 1 or len(values) % count:
        raise refuse(f"num_attention_heads is {count!r}, with {len(values)} rows")
    return count


def _halves(values: Floats, heads: int) -> Floats:
    """A head's rows lie as (0, h/2, 1, h/2 + 1, ...): llama.cpp rotates neighbours, transformers
    a row of the first half with the same of the second. Even places back first, then odd ones."""
    each = values.reshape(heads, len(values) // heads, -1)
    back = np.concatenate([each[:, 0::2], each[:, 1::2]], axis=1)
    return np.ascontiguousarray(back.reshape(values.shape))


def _query(values: Floats, config: Mapping[str, Any]) -> Floats:
    return _halves(values, _heads(config, values))


def _key(values: Floats, config: Mapping[str, Any]) -> Floats:
    """As many heads as of the query's size fit; the count itself may be left to a default."""
    size = config.get("head_dim")
    if not size:
        size = int(config["hidden_size"]) // int(config["num_attention_heads"])
    if len(values) % size:
        raise refuse(f"keys have {len(values)} rows, and heads {size}")
    return _halves(values, len(values) // size)


def _less_one(values: Floats, config: Mapping[str, Any]) -> Floats:
    return values - np.float32(1)


def _by_head(values: Floats, config: Mapping[str, Any]) -> Floats:
    """All of q, then k, then v, back to q, k, v of the first head, of the second, ..."""
    heads = int(config["num_attention_heads"])
    size = len(values) // (3 * heads)
    parts = [values[start : start + heads * size].reshape(heads, size, -1)
             for start in range(0, len(values), heads * size)]  # fmt: skip
    return np.concatenate(parts, axis=1).reshape(values.shape)


def _turned(values: Floats, config: Mapping[str, Any]) -> Floats:
    return np.ascontiguousarray(values.T)


_ROTATED = frozenset({"llama", "mistral", "smollm3"})
_GEMMA = frozenset({"gemma", "gemma2", "gemma3_text"})
CHANGES = (
    Change(_ROTATED, ("q_proj.weight", "q_proj.bias"), _query),
    Change(_ROTATED, ("k_proj.weight", "k_proj.bias"), _key),
    Change(_GEMMA, ("norm.weight",), _less_one),
    Change(frozenset({"gpt_neox"}), ("query_key_value.weight", "query_key_value.bias"), _by_head),
    Change(frozenset({"gpt2"}), ("c_attn.weight", "c_proj.weight", "c_fc.weight"), _turned),
)


@dataclass(frozen=True, slots=True)
class _Second:
    name: str = "gguf"
    targets: frozenset[str] = frozenset({"gguf"})

    def weights(self, path: Path, source: Source) -> Mapping[str, Floats]:
        return weights(path, source)


SECOND = _Second()
