"""What the source model's configuration says, as transformers itself reads it.

Defaults and spellings are those of transformers' own configuration classes, and angles those of its
own functions (`modeling_rope_utils.py`): nothing here is shared with what wrote the output.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from qconvert.formats.refusal import Refused, refuse
from qconvert.formats.told import Angles

LEFT_OUT = frozenset({
    "architectures", "dtype", "torch_dtype", "_name_or_path", "transformers_version",
    "quantization_config", "compression_config", "rope_theta", "rope_scaling", "rope_parameters",
    "rope_local_base_freq", "layer_types", "id2label", "label2id", "use_cache",
})  # fmt: skip
"""Keys of a configuration that do not say what is computed, or are compared as facts."""
OWN_NAMES: Mapping[str, tuple[str, ...]] = {
    "rms_norm_eps": ("layer_norm_eps", "layer_norm_epsilon"),
    "max_position_embeddings": ("n_positions",),
    "rotated": ("partial_rotary_factor", "rotary_pct", "head_dim"),
}
"""Llama's name of a setting -> what other model types call it."""
NOT_READ = frozenset(
    {"quantization_config", "num_labels", "id2label", "label2id", "dtype", "torch_dtype"}
)
MOST_LAYERS, MOST_PAIRS = 10_000, 1 << 16
SCALED = ("rope_type", "factor", "low_freq_factor", "high_freq_factor",
          "original_max_position_embeddings")  # fmt: skip
Facts = Mapping[str, Any]


def as_transformers(config: Mapping[str, Any]) -> Any:
    """A `PretrainedConfig` with all defaults; `Refused` where its class does not take them."""
    import transformers
    from transformers import AutoConfig

    given = {key: value for key, value in config.items() if key not in NOT_READ}
    kind, layers = given.pop("model_type", None), given.get("num_hidden_layers", 1)
    if isinstance(layers, int) and layers > MOST_LAYERS:  # transformers makes a list of them
        raise refuse(f"num_hidden_layers is {layers}")
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        return AutoConfig.for_model(str(kind), **given)
    except Exception as fault:  # of many kinds, from checks of values
        first = (str(fault).strip().splitlines() or [type(fault).__name__])[0]
        raise refuse(f"transformers does not take the configuration: {first}") from None
    finally:
        transformers.logging.set_verbosity(before)


def read(config: Mapping[str, Any]) -> tuple[Any, dict[str, Any], dict[str, Angles]]:
    """(config, facts, angles); `Refused` where there is no making sense of it."""
    found = as_transformers(config)
    try:
        settings_of(found)
        return found, facts_of(found), angles_of(found)
    except Refused:
        raise
    except Exception as fault:  # of values that no class checks
        raise refuse(f"{type(fault).__name__}: {fault}") from None


def facts_of(config: Any) -> dict[str, Any]:
    """By Llama's names; what a model type does not have is left out."""
    found = {
        "model_type": config.model_type,
        **{name: getattr(config, name, None) for name in (
            "num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size",
            "max_position_embeddings", "final_logit_softcapping", "attn_logit_softcapping",
            "use_parallel_residual", "query_pre_attn_scalar", "attention_bias",
            "tie_word_embeddings", "hidden_act", "hidden_activation")},
    }  # fmt: skip
    found["hidden_activation"] = found["hidden_activation"] or found["hidden_act"]
    heads = config.num_attention_heads
    found["num_key_value_heads"] = getattr(config, "num_key_value_heads", None) or heads
    found["head_dim"] = head_dim(config)
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    found["intermediate_size"] = inner or 4 * config.hidden_size
    names = ("rms_norm_eps", *OWN_NAMES["rms_norm_eps"])
    found["rms_norm_eps"] = next((getattr(config, n) for n in names if hasattr(config, n)), None)
    found["layer_types"], found["sliding_window"] = windows(config)
    full, local = rope_parameters(config)
    if full:
        found["rope_theta"] = full.get("rope_theta")
        found["rotated"] = int(found["head_dim"] * float(full.get("partial_rotary_factor") or 1))
    kind = full.get("rope_type") or "default"
    found["rope_scaling"] = None if kind == "default" else {key: full.get(key) for key in SCALED}
    if local:
        found["rope_local_base_freq"] = local.get("rope_theta")
    return found


def head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size
               // config.num_attention_heads)  # fmt: skip


def windows(config: Any) -> tuple[tuple[str, ...] | None, int | None]:
    """(kind of each layer, the window); None where no layer slides."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if getattr(config, "use_sliding_window", None) is False or window is None:
        return None, None
    if kinds is None:
        kinds = ["sliding_attention"] * config.num_hidden_layers
    slides = "sliding_attention" in kinds
    return (tuple(kinds), int(window)) if slides else (None, None)


def rope_parameters(config: Any) -> tuple[Facts, Facts]:
    """(of full attention, of sliding attention where that has its own)."""
    found = getattr(config, "rope_parameters", None) or {}
    if "full_attention" in found or "sliding_attention" in found:
        return found.get("full_attention") or {}, found.get("sliding_attention") or {}
    return found, {}


def angles_of(config: Any) -> dict[str, Angles]:
    """As `formats.told.Told.angles`; empty for a model without rotary positions."""
    full, local = rope_parameters(config)
    if not full:
        return {}
    nested = bool(local)
    found = {"full": _angles(config, full, "full_attention" if nested else None)}
    if full.get("rope_type") == "longrope":
        found["long"] = _angles(config, full, None, long=True)
    if local:
        found["sliding"] = _angles(config, local, "sliding_attention")
    return found


def _angles(config: Any, given: Facts, layer: str | None, *, long: bool = False) -> Angles:
    kind = given.get("rope_type") or "default"
    if head_dim(config) > MOST_PAIRS:
        raise refuse(f"head_dim is {head_dim(config)}")
    if kind == "default":
        dims = int(head_dim(config) * float(given.get("partial_rotary_factor") or 1))
        base = float(given["rope_theta"])
        return Angles(base ** -(np.arange(0, dims, 2, dtype=np.float64) / dims))
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    make = ROPE_INIT_FUNCTIONS[kind]
    own: dict[str, Any] = {} if layer is None else {"layer_type": layer}
    if kind == "longrope":
        original = given.get("original_max_position_embeddings")
        original = original or getattr(config, "original_max_position_embeddings", None)
        own["seq_len"] = int(original or config.max_position_embeddings) + int(long)
    frequencies, scale = make(config, device="cpu", **own)
    return Angles(frequencies.double().numpy(), float(scale))


def base_of(angles: Angles) -> float | None:
    """The base of positions that are not scaled; None where frequencies are no plain powers."""
    count = len(angles.frequencies)
    if count < 2 or not (angles.frequencies > 0).all():
        return None
    logs = np.log(angles.frequencies)
    line = np.arange(count) * logs[-1] / (count - 1)
    if np.abs(logs - line).max() > 1e-4:
        return None
    return float(np.exp(-logs[-1] * count / (count - 1)))


def longest(config: Any) -> set[int]:
    """Context lengths that a file may name: the model's own, and shorter ones up to which all that
    it computes is the same: the window, the texts that longrope was made for."""
    found = {int(config.max_position_embeddings)}
    window = windows(config)[1] or getattr(config, "sliding_window", None)
    if window:
        found.add(int(window))
    full = rope_parameters(config)[0]
    if full.get("rope_type") == "longrope":
        originals = (full.get("original_max_position_embeddings"),
                     getattr(config, "original_max_position_embeddings", None))  # fmt: skip
        found |= {int(one) for one in originals if one}
    return found


def own_name(config: Mapping[str, Any], name: str) -> str:
    """What the source's own file calls a setting."""
    known = (name, *OWN_NAMES.get(name, ()))
    return next((one for one in known if one in config), known[0])


def settings_of(config: Any) -> dict[str, Any]:
    """What is compared of a whole config.json, key by key."""
    return {key: value for key, value in config.to_dict().items() if key not in LEFT_OUT}


def alike(one: Any, other: Any) -> bool:
    """Equal, numbers as far as float32 holds them."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other or (one == other and type(one) is type(other))
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=0.0)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    return bool(one == other)


def shown(value: Any) -> str:
    """Of a value in a sentence."""
    if isinstance(value, tuple):
        return " and ".join(map(shown, value)) if len(value) < 5 else f"{value[:3]} ..."
    if isinstance(value, float):
        return f"{value:.10g}"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def differing(held: Mapping[str, Any], due: Mapping[str, Any]) -> Iterator[str]:
    """Keys at which two mappings differ, absent and null alike."""
    for key in dict.fromkeys((*due, *held)):
        with contextlib.suppress(RecursionError):
            if not alike(held.get(key), due.get(key)):
                yield key
