"""What an output says of its model beside the weights: shapes, positions, tokens, conversation.

A reader with a method `told(source) -> Told` says it in the terms of the source model's own files,
whatever the format calls them; `runtimes.told` compares. What a format does not hold is left out,
which is no fault; what it holds otherwise than the source is. A value that it must hold and does
not is None; one that it says twice, and differently, is a tuple of what it says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Turn = tuple[str, str]  # role "user" or "assistant", and what is said


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that a format says otherwise than the source, in terms that are its own."""

    culprit: str  # the source's own key, or what the format calls it
    problem: str  # one sentence
    stage: Literal["settings", "tokens"] = "settings"


@dataclass(frozen=True, slots=True)
class Angles:
    """Rotary positions as a program computes them of the file: position p turns pair i of a head by
    p * frequencies[i], and multiplies cosine and sine by `scale`."""

    frequencies: Floats  # [pairs]
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Prompts:
    """How a format that holds no jinja template makes a text of a conversation."""

    render: Callable[[Sequence[Turn], str | None], str | None]  # turns, system message
    without_system: bool  # whether the model's template can be said so, where there is no system
    with_system: bool  # message, and where there is one


@dataclass(frozen=True, slots=True)
class Told:
    """Names are those of config.json, tokenizer_config.json and generation_config.json."""

    model: Mapping[str, Any] = field(default_factory=dict)
    """"num_hidden_layers", "rope_theta", "rms_norm_eps", "max_position_embeddings", ..., by Llama's
    names of them."""

    tokens: Mapping[str, Any] = field(default_factory=dict)
    """"bos_token_id", "eos_token_id" (a sorted tuple: where generation stops), "pad_token_id" as
    the model's files have them; "bos_token", "eos_token", "pad_token", "unk_token": ids of the
    tokenizer's named tokens; "add_bos_token", "add_eos_token"."""

    chat_template: str | None = None  # the jinja template; None: the format holds none
    holds_chat_template: bool = True  # False: the format has no place for one
    generation: Mapping[str, Any] = field(default_factory=dict)  # "temperature", "top_p", ...
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    """Facts of the tokenizer that are compared as they are: "vocabulary" (sha256 of the tokens in
    order), "merges", "pre_tokenizer", "special tokens", ..."""

    angles: Mapping[str, Angles] = field(default_factory=dict)
    """Of "full" attention, of "long" texts (longrope), of "sliding" attention; "": of all layers,
    where the file does not say of which kind they are."""
    config: Mapping[str, Any] | None = None
    """A whole config.json that programs read as transformers does; compared key by key."""
    templates: Mapping[str, str] = field(default_factory=dict)  # named ones: "tool_use" -> jinja
    prompts: Prompts | None = None
    most: Mapping[str, float] = field(default_factory=dict)
    """Name in `model` -> the largest value that the format has a place for."""
    full: frozenset[str] = frozenset()  # names in `tokens` of lists that have no room for one more
    folder: Path | None = None  # where the output keeps files of the model's own
    copies: Sequence[str] = ()  # names of those that it holds as they are: "tokenizer.json"
    differs: Sequence[Difference] = ()  # what was compared already, in the format's own terms
