"""genai_config.json: how onnxruntime-genai is told of the model, and what it generates by default.

Keys as in onnxruntime-genai 0.18, `models/builders/base.py` (`make_genai_config`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qconvert.formats.careful import read_json
from qconvert.formats.onnx.model import Model
from qconvert.formats.refusal import Reason, Refused
from qconvert.formats.source import Source

CONFIG = "genai_config.json"
GENERATION = "generation_config.json"

_SEARCH: Mapping[str, Any] = {
    "do_sample": False, "num_beams": 1, "num_return_sequences": 1, "temperature": 1.0,
    "top_k": 50, "top_p": 1.0, "repetition_penalty": 1.0, "length_penalty": 1.0,
    "diversity_penalty": 0.0, "no_repeat_ngram_size": 0,
}  # fmt: skip
"""What generation_config.json may say otherwise, and what holds where it does not."""


def genai_config(source: Source, model: Model, *, shares_buffer: bool) -> bytes:
    generation = generation_config(source.folder)
    tokens = _tokens(source, generation)
    search = {key: _given(generation, key, default) for key, default in _SEARCH.items()}
    fields = {
        "model": {
            "type": model.arch.genai,
            "vocab_size": model.vocab,
            "context_length": model.context,
            **tokens,
            "decoder": _decoder(model),
        },
        "search": {
            **search,
            "early_stopping": True,
            "max_length": model.context,
            "min_length": 0,
            "past_present_share_buffer": shares_buffer,
        },
    }
    return (json.dumps(fields, indent=2, ensure_ascii=False) + "\n").encode()


def _decoder(model: Model) -> dict[str, Any]:
    caches = {
        kind: {f"{kind}_{part}_names": f"{name}.%d.{part}" for part in ("key", "value")}
        for kind, name in (("past", "past_key_values"), ("present", "present"))
    }
    return {
        "filename": "model.onnx",
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "head_size": model.head_size,
        "hidden_size": model.hidden,
        "num_attention_heads": model.heads,
        "num_hidden_layers": len(model.layers),
        "num_key_value_heads": model.kv_heads,
        "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask", **caches["past"]},
        "outputs": {"logits": "logits", **caches["present"]},
    }


def _tokens(source: Source, generation: Mapping[str, Any]) -> dict[str, Any]:
    """Begin, ends and padding; genai wants all of them."""

    def named(key: str) -> Any:
        found = generation.get(key)
        return source.config.get(key) if found is None else found

    ends = named("eos_token_id")
    first = ends[0] if isinstance(ends, list) and ends else ends
    begin, padding = named("bos_token_id"), named("pad_token_id")
    return {
        "bos_token_id": first if begin is None else begin,
        "eos_token_id": ends,
        "pad_token_id": first if padding is None else padding,
    }


def _given(generation: Mapping[str, Any], key: str, default: Any) -> Any:
    """A setting of the same kind as its default; whole numbers stand for floats."""
    value = generation.get(key)
    kinds = (int, float) if isinstance(default, float) else (type(default),)
    if type(value) not in kinds:
        return default
    return type(default)(value)


def generation_config(folder: Path) -> Mapping[str, Any]:
    """generation_config.json; empty where there is none that can be read."""
    try:
        found = read_json(folder / GENERATION)
    except (OSError, Refused):
        return {}
    return found if isinstance(found, dict) else {}


def token_problems(source: Source) -> list[Reason]:
    """Without an end, generation never stops, and the configuration is refused."""
    ends = _tokens(source, generation_config(source.folder))["eos_token_id"]
    whole = [ends] if isinstance(ends, int) else ends
    if isinstance(whole, list) and whole and all(type(one) is int for one in whole):
        return []
    return [Reason(f"eos_token_id is {ends!r}: onnxruntime-genai needs a token that ends a text",
                   "set eos_token_id in config.json or generation_config.json")]  # fmt: skip
