"""Faults of settings: right weights, and a file that says the wrong thing about them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from planting.fault import here, named, there
from planting.files import Inapplicable
from planting.output import Culprits, Output


def setting(key: str, value: Any) -> Callable[[Output], Culprits]:
    return lambda out: out.setting(key, value)


def half_heads(out: Any) -> Culprits:
    """Twice the heads of half the size: every shape still fits."""
    facts = out.facts
    told = {"num_attention_heads": 2 * facts.heads, "num_key_value_heads": 2 * facts.kv_heads,
            "head_dim": facts.head_dim // 2}  # fmt: skip
    if out.format == "onnx":
        node, found = "GroupQueryAttention", set[str]()
        found.update(out.attribute(node, "num_heads", 2 * facts.heads))
        found.update(out.attribute(node, "kv_num_heads", 2 * facts.kv_heads))
        return (*told, *found)
    if out.format == "vllm":
        out.files.edit_json("config.json", lambda content: content.update(told))
        return (*told, "config.json")
    return [name for key, value in told.items() for name in out.setting(key, value)]


def few_kv_heads(out: Output) -> Culprits:
    """As many key heads as query heads, in a model that shares them."""
    if out.facts.heads == out.facts.kv_heads:
        raise Inapplicable("heads are not grouped")
    told = out.setting("num_key_value_heads", out.facts.heads)
    every = [named(block, part) for block in range(out.facts.blocks)
             for part in ("k_proj", "v_proj")]  # fmt: skip
    return (*told, *every)


def attribute(op: str, name: str, value: Any, *culprits: str) -> Callable[[Any], Culprits]:
    """An attribute of every node of a kind in a graph."""

    def plant(out: Any) -> Culprits:
        if out.format != "onnx":
            raise Inapplicable("there is no graph")
        return (*out.attribute(op, name, value), *culprits)

    return plant


def softmax_scale(out: Any) -> Culprits:
    """Attention scores divided by the size of a head, not by its root."""
    if out.format != "onnx":
        raise Inapplicable("there is no graph")
    node = "GroupQueryAttention"
    return ("head_dim", *out.attribute(node, "scale", 1.0 / out.facts.head_dim))


def quantization(change: Callable[[Any], None], *culprits: str) -> Callable[[Any], Culprits]:
    """Of quantization_config in a folder for serving programs."""

    def plant(out: Any) -> Culprits:
        if out.format != "vllm":
            raise Inapplicable("there is no quantization_config")
        return (*culprits, *out.quantization(change))

    return plant


def _ignored(told: Any) -> list[str]:
    for key in ("ignore", "modules_to_not_convert"):
        if isinstance(told.get(key), list):
            listed: list[str] = told[key]
            return listed
    raise Inapplicable("nothing is ignored by name")


def ignore_forgets_head(told: Any) -> None:
    _ignored(told).remove("lm_head")


def ignore_nested(told: Any) -> None:
    listed = _ignored(told)
    listed[:] = [list(listed)]  # type: ignore[list-item]


def ignore_lists_a_quantized(out: Any) -> Culprits:
    """A linear that is quantized is listed as one that is not."""
    name = named(here(out.facts), "down_proj")
    stem = name.removesuffix(".weight")

    def change(told: Any) -> None:
        _ignored(told).append(stem)

    if out.format != "vllm":
        raise Inapplicable("there is no quantization_config")
    return (name, stem, "ignore", "modules_to_not_convert", *out.quantization(change))


def weights_argument(key: str, value: Any) -> Callable[[Any], None]:
    """Of the first group of compressed-tensors, or of the whole in the older forms."""

    def change(told: Any) -> None:
        groups = list((told.get("config_groups") or {}).values())
        if groups:
            groups[0]["weights"][key] = value
            return
        older = {"num_bits": "bits", "symmetric": "sym"}.get(key, key)
        if older not in told:
            raise Inapplicable(f"{older} is not said")
        told[older] = value

    return change


def activation_argument(key: str, value: Any) -> Callable[[Any], None]:
    def change(told: Any) -> None:
        groups = list((told.get("config_groups") or {}).values())
        inputs = groups[0].get("input_activations") if groups else None
        if not inputs:
            raise Inapplicable("activations are not rounded")
        inputs[key] = value

    return change


def input_scale(change: Callable[[Any, str], Any], part: str = "") -> Callable[[Any], Culprits]:
    """The fixed scale of what a linear reads: of one block's MLP, or of `part` alone."""

    def plant(out: Any) -> Culprits:
        parts = (part,) if part else ("gate_proj", "up_proj")
        touched = []
        for one in parts:
            stem = named(here(out.facts), one).removesuffix(".weight")
            name = f"{stem}.input_scale"
            if out.format != "vllm" or not out.tensors.has(name):
                raise Inapplicable("no scale of activations is stored")
            now = out.tensors.get(name)
            out.tensors.put(name, np.asarray(change(out, one), np.float32).reshape(now.shape))
            touched += [f"{stem}.weight", name, f"{stem}.input"]
        return (*touched, "input_scale")

    return plant


def own_input_scale(factor: float) -> Callable[[Any, str], Any]:
    return lambda out, part: _scale_of(out, here(out.facts), part) * np.float32(factor)


def reciprocal_input_scale(out: Any, part: str) -> Any:
    return 1 / _scale_of(out, here(out.facts), part)


def input_scale_of_another(out: Any, part: str) -> Any:
    own = float(_scale_of(out, here(out.facts), part))
    others = [float(_scale_of(out, block, part)) for block in range(out.facts.blocks)]
    return max(others, key=lambda other: abs(np.log(other / own)))


def _scale_of(out: Any, block: int, part: str) -> Any:
    stem = named(block, part).removesuffix(".weight")
    return out.tensors.get(f"{stem}.input_scale").reshape(())


def cache_scale(factor: float) -> Callable[[Any], Culprits]:
    """The scale of a block's keys."""

    def plant(out: Any) -> Culprits:
        block = here(out.facts)
        name = f"model.layers.{block}.self_attn.k_scale"
        if out.format != "vllm" or not out.tensors.has(name):
            raise Inapplicable("no scale of the cache is stored")
        out.tensors.put(name, out.tensors.get(name) * np.float32(factor))
        return (name, "k_scale", f"block {block}", f"model.layers.{block}.self_attn",
                named(block, "k_proj"))  # fmt: skip

    return plant


def cache_scales_lost(out: Any) -> Culprits:
    """The scheme of the cache is there, one block's scales are not."""
    block = there(out.facts)
    name = f"model.layers.{block}.self_attn.v_scale"
    if out.format != "vllm" or not out.tensors.has(name):
        raise Inapplicable("no scale of the cache is stored")
    out.tensors.remove(name)
    return (name, "v_scale", f"block {block}", "kv_cache_scheme", named(block, "v_proj"))
