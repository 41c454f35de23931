"""Rotary positions: config.json in either spelling -> GGUF keys and frequency tensors.

The formulas are those of transformers (`modeling_rope_utils.py`) and of llama.cpp
(`src/llama-context.cpp`: what it does by itself for yarn; `src/llama-model.cpp`: the keys).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf.constants import MODEL_TENSOR
from numpy.typing import NDArray

from qconvert.formats.gguf.architecture import Architecture
from qconvert.formats.gguf.hyperparameters import Hyperparameters
from qconvert.formats.settings import Settings, is_number, rope_kind

_HANDLED = {
    "rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings",
    "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate",
    "partial_rotary_factor", "low_freq_factor", "high_freq_factor", "long_factor", "short_factor",
    "finetuned",
}  # fmt: skip
_HARD_CODED = {"beta_fast": 32, "beta_slow": 1, "truncate": True}  # llama.cpp's yarn


@dataclass(frozen=True, slots=True)
class Rope:
    """`attention` multiplies cos and sin beyond what llama.cpp does by itself for `scaling`."""

    theta: float
    dims: int
    local_theta: float | None = None
    scaling: str | None = None  # as in `rope.scaling.type`: "linear", "yarn", "longrope"
    factor: float | None = None
    original_context: int | None = None
    attention: float | None = None
    factors: tuple[tuple[MODEL_TENSOR, NDArray[np.float32]], ...] = ()  # each [dims / 2]

    @property
    def notes(self) -> tuple[str, ...]:
        """Where llama.cpp decides otherwise than transformers, a line each."""
        if self.scaling != "longrope":
            return ()
        return (
            f"longrope: llama.cpp takes the long factors when opened with a context above "
            f"{self.original_context}, transformers when the text itself is longer",
        )


def read_rope(settings: Settings, arch: Architecture, sizes: Hyperparameters) -> Rope | None:
    """The rope of a model, None where it has none; what llama.cpp cannot do is noted."""
    if not arch.ropes:
        return None
    full, local = _parameters(settings, arch)
    if unknown := set(full) - _HANDLED:
        settings.refuse(f"config.json: unknown rope parameters {', '.join(sorted(unknown))}")
    kind = rope_kind(full)
    dims = _rotated_dims(settings, arch, full, sizes.head_dim)
    theta = _number(settings, full, "rope_theta", settings.get("rope_theta"))
    base = Rope(theta, dims, _local_theta(settings, arch, local))
    if kind not in arch.ropes:
        settings.refuse(
            f"rope scaling {kind!r} cannot be expressed for llama.cpp's {arch.name}",
            f"it can do {', '.join(sorted(arch.ropes))}",
        )
        return base
    if kind == "default":
        return base
    return _SCALED[kind](settings, full, sizes, base)


def _parameters(
    settings: Settings, arch: Architecture
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """(parameters of full attention, of sliding attention)."""
    full, local = settings.rope_parameters()
    if not arch.local_rope and local and dict(local) != dict(full):
        settings.refuse(
            f"rope parameters differ by layer type: llama.cpp's {arch.name} has one rope for all"
        )
    return full, local


def _local_theta(settings: Settings, arch: Architecture, local: Mapping[str, Any]) -> float | None:
    if not arch.local_rope:
        return None
    kind = local.get("rope_type", local.get("type")) or "default"
    if kind != "default" or set(local) - {"rope_type", "type", "rope_theta"}:
        settings.refuse(
            f"rope scaling {kind!r} on sliding layers",
            f"llama.cpp's {arch.name} scales the full layers only",
        )
    return _number(settings, local, "rope_theta", settings.get("rope_local_base_freq"))


def _rotated_dims(
    settings: Settings, arch: Architecture, full: Mapping[str, Any], head_dim: int
) -> int:
    given = full.get("partial_rotary_factor", settings.get("partial_rotary_factor"))
    if given is None:
        return head_dim
    if not is_number(given) or not 0 < given <= 1:
        settings.refuse(f"config.json: partial_rotary_factor is {given!r}, not in (0, 1]")
        return head_dim
    dims = int(head_dim * given)
    if dims != head_dim and not arch.partial_rotary:
        settings.refuse(
            f"only {dims} of {head_dim} values of a head are rotated: "
            f"llama.cpp's {arch.name} rotates all"
        )
    elif dims % 2 or not dims:
        settings.refuse(f"{dims} rotated values per head: an even number is needed")
    return dims


def _number(settings: Settings, given: Mapping[str, Any], key: str, default: Any = None) -> float:
    value = given.get(key)
    value = default if value is None else value
    if is_number(value) and value > 0:
        return float(value)
    settings.refuse(
        f"config.json: rope parameter {key} is {value!r}", "a positive number is needed"
    )
    return 1.0


def _original_context(settings: Settings, given: Mapping[str, Any]) -> int:
    """As transformers: a value beside the rope parameters wins; else the model's own context."""
    value = settings.get("original_max_position_embeddings")
    inner = {} if value is not None else given
    default = value if value is not None else settings.get("max_position_embeddings")
    return int(_number(settings, inner, "original_max_position_embeddings", default))


def _linear(settings: Settings, given: Mapping[str, Any], _: Hyperparameters, base: Rope) -> Rope:
    factor = _number(settings, given, "factor")
    return Rope(base.theta, base.dims, base.local_theta, "linear", factor)


def _yarn(settings: Settings, given: Mapping[str, Any], _: Hyperparameters, base: Rope) -> Rope:
    original = _original_context(settings, given)
    ratio = settings.count("max_position_embeddings") / original
    factor = _number(settings, given, "factor", ratio)
    for key, fixed in _HARD_CODED.items():
        if given.get(key) is not None and given[key] != fixed:
            settings.refuse(
                f"config.json: yarn's {key} is {given[key]!r}, which llama.cpp would ignore",
                f"it computes with {fixed}",
            )
    by_itself = _yarn_attention(factor, 1.0)
    wanted = given.get("attention_factor")
    scales = given.get("mscale"), given.get("mscale_all_dim")
    if wanted is not None:
        attention = _number(settings, given, "attention_factor") / by_itself
    elif all(is_number(scale) and scale for scale in scales):
        ours, others = (_yarn_attention(factor, float(scale or 0)) for scale in scales)
        attention = ours / others / by_itself
    else:
        attention = 1.0
    return Rope(
        base.theta, base.dims, base.local_theta, "yarn", factor, original,
        None if attention == 1.0 else attention,
    )  # fmt: skip


def _yarn_attention(factor: float, scale: float) -> float:
    """Yarn, arXiv 2309.00071, section 3.4: sqrt(1/t) = 0.1 ln(s) + 1."""
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _llama3(settings: Settings, given: Mapping[str, Any], _: Hyperparameters, base: Rope) -> Rope:
    """Llama 3.1: long waves are stretched, short ones kept, those between are blended."""
    factor = _number(settings, given, "factor")
    low = _number(settings, given, "low_freq_factor")
    high = _number(settings, given, "high_freq_factor")
    original = _original_context(settings, given)
    if high <= low:
        settings.refuse(f"config.json: high_freq_factor {high} is not above low_freq_factor {low}")
        return base
    waves = 2 * np.pi * base.theta ** (np.arange(0, base.dims, 2) / base.dims)
    smooth = np.clip((original / waves - low) / (high - low), 0.0, 1.0)
    stretch = 1.0 / ((1.0 - smooth) / factor + smooth)
    factors = ((MODEL_TENSOR.ROPE_FREQS, stretch.astype(np.float32)),)
    return Rope(base.theta, base.dims, base.local_theta, factors=factors)


def _longrope(
    settings: Settings, given: Mapping[str, Any], sizes: Hyperparameters, base: Rope
) -> Rope:
    original = _original_context(settings, given)
    ratio = settings.count("max_position_embeddings") / original
    factor = _number(settings, given, "factor", ratio)
    default = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(max(2, original)))
    attention = _number(settings, given, "attention_factor", default)
    named = {
        "long_factor": MODEL_TENSOR.ROPE_FACTORS_LONG,
        "short_factor": MODEL_TENSOR.ROPE_FACTORS_SHORT,
    }
    factors = []
    for key, tensor in named.items():
        values = given.get(key)
        usable = isinstance(values, list) and len(values) == base.dims // 2
        if not usable or not all(is_number(value) and value > 0 for value in values or ()):
            settings.refuse(f"config.json: {key} is not {base.dims // 2} positive numbers")
            return base
        factors.append((tensor, np.asarray(values, dtype=np.float32)))
    return Rope(
        base.theta, base.dims, base.local_theta, "longrope", None, original,
        None if attention == 1.0 else attention, tuple(factors),
    )  # fmt: skip


_SCALED = {"linear": _linear, "yarn": _yarn, "llama3": _llama3, "longrope": _longrope}
