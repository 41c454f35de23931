"""The keys of a GGUF file but its tokenizer's: general facts and hyperparameters."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gguf.constants import GGML_QUANT_VERSION, GGUFValueType, Keys
from gguf.utility import size_label

from qconvert.formats.gguf.architecture import Architecture
from qconvert.formats.gguf.header import Entry
from qconvert.formats.gguf.hyperparameters import Hyperparameters
from qconvert.formats.gguf.mixes import Mix
from qconvert.formats.gguf.rope import Rope
from qconvert.formats.gguf.vocab import Vocabulary, model_name
from qconvert.formats.source import Source

_CARD_KEYS = {
    "license": Keys.General.LICENSE,
    "license_name": Keys.General.LICENSE_NAME,
    "license_link": Keys.General.LICENSE_LINK,
}
_CARD_LINE = re.compile(r"^([a-z_]+):[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)


def _text(key: str, value: str) -> Entry:
    return Entry(key, value, GGUFValueType.STRING)


def _count(key: str, value: int) -> Entry:
    return Entry(key, value, GGUFValueType.UINT32)


def _real(key: str, value: float) -> Entry:
    return Entry(key, value, GGUFValueType.FLOAT32)


def general_entries(
    source: Source, arch: Architecture, mix: Mix, vocabulary: Vocabulary
) -> tuple[Entry, ...]:
    """Architecture, name, size, licence, file type. Nothing of the path, the clock or the host."""
    weights = sum(math.prod(tensor.shape) for tensor in source.tensors)
    label = size_label(weights, weights, 0, 0)
    card = _model_card(source.folder)
    name = card.get("model_name") or _config_name(source.config) or f"{arch.model_type} {label}"
    licence = {key: card.get(key, "") for key in _CARD_KEYS}
    if not licence["license"] and isinstance(source.config.get("license"), str):
        licence["license"] = source.config["license"]
    return (
        _text(Keys.General.ARCHITECTURE, arch.name),
        _text(Keys.General.TYPE, "model"),
        _text(Keys.General.NAME, model_name(name, vocabulary)),
        _text(Keys.General.SIZE_LABEL, label),
        *(_text(_CARD_KEYS[key], value) for key, value in licence.items() if value),
        _count(Keys.General.FILE_TYPE, mix.file_type),
        _count(Keys.General.QUANTIZATION_VERSION, GGML_QUANT_VERSION),
    )


def _config_name(config: Mapping[str, Any]) -> str:
    """The last part of `_name_or_path`, unless it is a local path."""
    given = config.get("_name_or_path")
    if not isinstance(given, str) or given.startswith((".", "/", "~")) or "\\" in given:
        return ""
    return given.strip().rsplit("/", 1)[-1]


def _model_card(folder: Path) -> dict[str, str]:
    """Plain `key: value` lines of the front matter of README.md; empty where there is none."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    parts = text.split("---\n", 2)
    if len(parts) < 3 or parts[0].strip("\ufeff \n"):
        return {}
    return {key: value.strip("\"'") for key, value in _CARD_LINE.findall(parts[1])}


def model_entries(
    arch: Architecture, sizes: Hyperparameters, rope: Rope | None
) -> tuple[Entry, ...]:
    """Everything that llama.cpp reads of an architecture, under its own names."""
    found = (*_size_entries(arch, sizes), *_window_entries(arch, sizes), *_rope_entries(rope))
    return tuple(
        Entry(entry.key.format(arch=arch.name), entry.value, entry.kind, entry.sub_kind)
        for entry in found
    )


def _size_entries(arch: Architecture, sizes: Hyperparameters) -> Iterator[Entry]:
    eps = Keys.Attention.LAYERNORM_EPS if arch.norm == "layer" else Keys.Attention.LAYERNORM_RMS_EPS
    yield _count(Keys.LLM.BLOCK_COUNT, sizes.blocks)
    yield _count(Keys.LLM.CONTEXT_LENGTH, sizes.context)
    yield _count(Keys.LLM.EMBEDDING_LENGTH, sizes.hidden)
    yield _count(Keys.LLM.FEED_FORWARD_LENGTH, sizes.ffn)
    yield _count(Keys.LLM.VOCAB_SIZE, sizes.vocab)
    yield _count(Keys.Attention.HEAD_COUNT, sizes.heads)
    yield _count(Keys.Attention.HEAD_COUNT_KV, sizes.kv_heads)
    yield _count(Keys.Attention.KEY_LENGTH, sizes.head_dim)
    yield _count(Keys.Attention.VALUE_LENGTH, sizes.head_dim)
    yield _real(eps, sizes.norm_eps)
    if sizes.parallel_residual is not None:
        parallel = sizes.parallel_residual
        yield Entry(Keys.LLM.USE_PARALLEL_RESIDUAL, parallel, GGUFValueType.BOOL)
    if sizes.soft_cap is not None:
        yield _real(Keys.LLM.FINAL_LOGIT_SOFTCAPPING, sizes.soft_cap)


def _window_entries(arch: Architecture, sizes: Hyperparameters) -> Iterator[Entry]:
    """The window, and which blocks have it where that is not llama.cpp's own every-sixth rule."""
    if arch.windows != "pattern" or sizes.window is None:
        return
    yield _count(Keys.Attention.SLIDING_WINDOW, sizes.window)
    usual = tuple((block + 1) % 6 != 0 for block in range(sizes.blocks))
    if sizes.sliding != usual:
        key = Keys.Attention.SLIDING_WINDOW_PATTERN
        yield Entry(key, sizes.sliding, GGUFValueType.ARRAY, GGUFValueType.BOOL)


def _rope_entries(rope: Rope | None) -> Iterator[Entry]:
    if rope is None:
        return
    yield _count(Keys.Rope.DIMENSION_COUNT, rope.dims)
    yield _real(Keys.Rope.FREQ_BASE, rope.theta)
    if rope.local_theta is not None:
        yield _real(Keys.Rope.FREQ_BASE_SWA, rope.local_theta)
    if rope.scaling is not None:
        yield _text(Keys.Rope.SCALING_TYPE, rope.scaling)
    if rope.factor is not None:
        yield _real(Keys.Rope.SCALING_FACTOR, rope.factor)
    if rope.original_context is not None:
        yield _count(Keys.Rope.SCALING_ORIG_CTX_LEN, rope.original_context)
    if rope.attention is not None:
        yield _real(Keys.Rope.SCALING_ATTN_FACTOR, rope.attention)
