"""What an output says of its model beside the weights: shapes, positions, tokens, conversation.

A reader with a method `told(source) -> Told` says it in the terms of the source model's own files,
whatever the format calls them; `runtimes.told` compares. What a format does not hold is left out,
which is no fault; what it holds otherwise than the source is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Told:
    """Names are those of config.json, tokenizer_config.json and generation_config.json."""

    model: Mapping[str, Any] = field(default_factory=dict)
    """"num_hidden_layers", "rope_theta", "rms_norm_eps", "max_position_embeddings", ..."""

    tokens: Mapping[str, Any] = field(default_factory=dict)
    """"bos_token_id", "eos_token_id" (a sorted tuple), "pad_token_id", "add_bos_token", ..."""

    chat_template: str | None = None  # the jinja template; None: the format holds none
    holds_chat_template: bool = True  # False: the format has no place for one
    generation: Mapping[str, Any] = field(default_factory=dict)  # "temperature", "top_p", ...
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    """Facts of the tokenizer that are compared as they are: "vocabulary" (sha256 of the tokens in
    order), "merges", "pre_tokenizer", "special tokens", ..."""
