"""A checkpoint as its graph sees it: sizes, the facts of each layer, and all that is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qconvert.formats.onnx.architectures import ACTIVATIONS, ARCHITECTURES, Architecture
from qconvert.formats.onnx.rope import Rope, read_ropes
from qconvert.formats.refusal import Reason, raise_if_any, refuse
from qconvert.formats.settings import Settings
from qconvert.formats.source import Source

LONGEST = 131_072
"""Positions of the longest table of cosines and sines: 64 MiB at 64 columns. A cache of keys and
values of that length is larger than the devices that such a folder is for."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What one layer's attention does."""

    window: int | None  # positions it looks back on, its own among them; None: all
    rope: str | None  # name of the tables in `Model.ropes`; None: no positions


@dataclass(frozen=True, slots=True)
class Model:
    arch: Architecture
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    vocab: int
    context: int  # positions that the folder is for
    eps: float
    activation: str  # of ACTIVATIONS
    score_scale: float  # of queries times keys
    embedding_scale: float | None
    soft_cap: float | None  # of the final logits
    layers: tuple[Layer, ...]
    ropes: Mapping[str, Rope]  # "" for full attention, "local" for sliding layers of their own
    notes: tuple[str, ...]


def read_model(source: Source) -> Model:
    """Everything but types; `Refused` with all that no graph is known for."""
    arch = ARCHITECTURES.get(source.model_type)
    turned = next((one for one in source.tensors if one.transposed), None)
    if turned is not None:
        raise refuse(
            f"no graph is known for models of type {source.model_type}"
            f" (its {turned.name} is stored transposed)", "--to gguf takes this model",
        )  # fmt: skip
    if arch is None:
        raise refuse(
            f"no graph is known for models of type {source.model_type}",
            f"it is for {', '.join(ARCHITECTURES)}; --to gguf may take this one",
        )
    return _read(Settings(source.config, arch.defaults), arch, source)


def _read(settings: Settings, arch: Architecture, source: Source) -> Model:
    hidden, heads = settings.count("hidden_size"), settings.count("num_attention_heads")
    head_size = settings.count("head_dim", fallback=max(1, hidden // heads))
    _check_switches(settings, arch)
    if head_size % 8:
        settings.refuse(f"heads of {head_size} values: GroupQueryAttention takes multiples of 8")
    full, local = read_ropes(settings, arch, head_size)
    layers = _layers(settings, arch, settings.count("num_hidden_layers"))
    used = {layer.rope for layer in layers}
    ropes = {name: rope for name, rope in (("", full), ("local", local)) if name in used}
    context, notes = _context(settings, ropes)
    model = Model(
        arch=arch,
        hidden=hidden,
        heads=heads,
        kv_heads=settings.count("num_key_value_heads", fallback=heads),
        head_size=head_size,
        vocab=settings.count("vocab_size"),
        context=context,
        eps=settings.number("rms_norm_eps"),
        activation=ACTIVATIONS.get(str(settings.get(arch.activation)), ""),
        score_scale=_score_scale(settings, arch, head_size),
        embedding_scale=math.sqrt(hidden) if arch.scaled_embedding else None,
        soft_cap=_soft_cap(settings, arch),
        layers=layers,
        ropes=ropes,
        notes=notes,
    )
    raise_if_any([*settings.reasons, *_bias_problems(source)])
    return model


def _check_switches(settings: Settings, arch: Architecture) -> None:
    for key, allowed in arch.only.items():
        value = settings.get(key)
        if not isinstance(value, bool | int | float | str | None) or value not in allowed:
            settings.refuse(
                f"config.json: {key} is {value!r}, which the graph would not compute",
                f"it is for {' or '.join(sorted(map(str, allowed)))} only",
            )
    name = settings.get(arch.activation)
    if name not in ACTIVATIONS:
        settings.refuse(f"config.json: the activation is {name!r}",
                        f"the graph computes {', '.join(ACTIVATIONS)}")  # fmt: skip


def _score_scale(settings: Settings, arch: Architecture, head_size: int) -> float:
    base = settings.number(arch.score_scale) if arch.score_scale else float(head_size)
    return 1 / math.sqrt(base)


def _soft_cap(settings: Settings, arch: Architecture) -> float | None:
    if not arch.soft_cap or settings.get(arch.soft_cap) is None:
        return None
    return settings.number(arch.soft_cap)


def _layers(settings: Settings, arch: Architecture, count: int) -> tuple[Layer, ...]:
    ropes = _with_rope(settings, arch, count)
    sliding = _sliding(settings, arch, ropes)
    window = settings.count("sliding_window") if any(sliding) else None
    return tuple(
        Layer(window if slides else None,
              ("local" if slides and arch.local_rope else "") if rotated else None)
        for slides, rotated in zip(sliding, ropes, strict=True)
    )  # fmt: skip


def _with_rope(settings: Settings, arch: Architecture, count: int) -> list[bool]:
    """Which layers have positions."""
    if not arch.skips_rope:
        return [True] * count
    named = settings.get("no_rope_layers")  # 1 where there is a rope, whatever its name says
    if not named:
        period = settings.count("no_rope_layer_interval")
        return [bool((at + 1) % period) for at in range(count)]
    if not isinstance(named, list) or len(named) != count:
        settings.refuse(f"config.json: no_rope_layers is not a list of {count}")
        return [True] * count
    return [bool(one) for one in named]


def _sliding(settings: Settings, arch: Architecture, ropes: list[bool]) -> list[bool]:
    """Which layers attend to a window, by the rules of the model type."""
    count = len(ropes)
    switched = arch.windows not in ("by_layer", "without_rope")
    if arch.windows == "none" or settings.get("sliding_window") is None:
        return [False] * count
    if not switched and not settings.get("use_sliding_window"):
        return [False] * count
    named = settings.get("layer_types")
    if arch.windows == "all":
        return [True] * count
    if named is not None:
        known = {"sliding_attention", "full_attention"}
        if not isinstance(named, list) or len(named) != count or not set(named) <= known:
            settings.refuse(f"config.json: layer_types is not {count} times one of {sorted(known)}")
            return [False] * count
        return [one == "sliding_attention" for one in named]
    if arch.windows == "by_layer":
        first = settings.get("max_window_layers")
        return [at >= int(first or 0) for at in range(count)]
    if arch.windows == "without_rope":
        return [not one for one in ropes]
    period = settings.count("sliding_window_pattern")
    return [bool((at + 1) % period) for at in range(count)]


def _context(settings: Settings, ropes: Mapping[str, Rope]) -> tuple[int, tuple[str, ...]]:
    """Positions that the tables hold, and why they are fewer than the model's."""
    whole = settings.count("max_position_embeddings")
    limit = min((rope.limit for rope in ropes.values() if rope.limit), default=whole)
    if limit < whole:
        return limit, (
            f"longrope: positions up to {limit} of {whole}, inside which its angles do not depend"
            " on the length of the text",
        )
    if whole > LONGEST and ropes:
        return LONGEST, (f"the folder is for {LONGEST} of {whole} positions: tables of cosines and"
                         " sines are stored",)  # fmt: skip
    return whole, ()


def _bias_problems(source: Source) -> list[Reason]:
    """Of q, k and v, all have a bias or none: they may become one linear."""
    have: dict[Any, set[str]] = {}
    for one in source.tensors:
        if one.part == "bias" and one.role in ("attn_q", "attn_k", "attn_v"):
            have.setdefault(one.block, set()).add(one.role)
    odd = next((block for block, roles in have.items() if len(roles) != 3), None)
    if odd is None:
        return []
    return [Reason(f"block {odd}: some of q, k and v have a bias and some have none")]
