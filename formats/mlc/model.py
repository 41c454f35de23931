"""A checkpoint as MLC sees it: what its configuration says, and why MLC could not run it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qconvert.formats.mlc.architectures import ARCHITECTURES, Architecture
from qconvert.formats.refusal import Reason, raise_if_any, refuse
from qconvert.formats.source import Source

BATCH = 128  # max_batch_size that gen_config writes
SINK = 4  # positions that a rolling window never forgets
PATTERN = 6  # of Gemma 3: this many layers, the last of which attends to everything
ELSEWHERE = "--to gguf or --to vllm may take this model"


@dataclass(frozen=True, slots=True)
class Model:
    arch: Architecture
    facts: Mapping[str, Any]  # by MLC's names of them, all that any architecture asks for
    notes: tuple[str, ...]

    def config(self, dtype: str) -> dict[str, Any]:
        """`model_config` of mlc-chat-config.json."""
        facts: dict[str, Any] = {**self.facts, "dtype": dtype}
        if self.arch.inner:
            facts["text_config"] = {name: facts[name] for name in self.arch.inner}
        return {name: facts[name] for name in self.arch.fields}


def read_model(source: Source) -> Model:
    """All from the configuration; `Refused` with everything that MLC cannot do."""
    arch = ARCHITECTURES.get(source.model_type)
    if arch is None:
        raise refuse(
            f"MLC folders are not written for models of type {source.model_type!r}",
            f"they are for {', '.join(ARCHITECTURES)}; {ELSEWHERE}",
        )
    config = {**arch.defaults, **{k: v for k, v in source.config.items() if v is not None}}
    if "sliding_window" in source.config:  # null says that there is none
        config["sliding_window"] = source.config["sliding_window"]
    rope = _rope(config)
    raise_if_any([*_config_problems(config, rope, arch), *_tensor_problems(source, arch)])
    context, window, notes = _reach(config, arch)
    return Model(arch, _facts(source, config, rope, context, window), (*notes, *arch.notes))


def _facts(
    source: Source, config: Mapping[str, Any], rope: Mapping[str, Any], context: int, window: int
) -> dict[str, Any]:
    arch = ARCHITECTURES[source.model_type]
    heads = config["num_attention_heads"]
    base = _whole(rope["rope_theta"])
    reach = window if context < 0 else context
    return {
        **{name: config.get(name) for name in (*arch.fields, *arch.inner)},
        "num_key_value_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
        "tie_word_embeddings": source.tied,
        "position_embedding_base": base,
        "rope_theta": base,
        "rope_scaling": _scaling(rope),
        "context_window_size": context,
        "sliding_window_size": window,
        "prefill_chunk_size": min(reach, arch.chunk),
        "attention_sink_size": SINK if arch.window == "rolling" else -1,
        "tensor_parallel_shards": 1,
        "pipeline_parallel_stages": 1,
        "max_batch_size": BATCH,
        "disaggregation": False,
        "weight_block_size": None,
        "is_text_model": True,
        "hidden_activation": config.get("hidden_activation") or config.get("hidden_act"),
    }


def _reach(config: Mapping[str, Any], arch: Architecture) -> tuple[int, int, tuple[str, ...]]:
    """(context, sliding window, notes) as MLC has them; -1: there is none."""
    most, window = int(config["max_position_embeddings"]), int(config.get("sliding_window") or 0)
    if arch.window == "rolling":
        return (-1, window, ()) if window else (most, -1, ())
    if arch.window == "pattern":
        return min(most, max(window, 8192)), window or most, ()
    slides = arch.window == "own" or config.get("use_sliding_window")
    if not slides or not 0 < window < most:
        return most, -1, ()
    note = f"MLC has no sliding window for this model: its context is cut to {window} of {most}"
    return window, -1, (note,)


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rope of (full) attention, in one spelling: transformers 5 has `rope_parameters`, for each
    kind of layer or for all; older files `rope_theta` and `rope_scaling`."""
    found = config.get("rope_parameters")
    if isinstance(found, Mapping) and isinstance(found.get("full_attention"), Mapping):
        found = found["full_attention"]
    if not isinstance(found, Mapping):
        found = config.get("rope_scaling") or {}
    if not isinstance(found, Mapping):
        found = {}
    kind = found.get("rope_type") or found.get("type") or "default"
    return {"rope_theta": config["rope_theta"], **found, "rope_type": kind}


def _scaling(rope: Mapping[str, Any]) -> dict[str, Any] | None:
    if rope["rope_type"] != "llama3":
        return None
    return {key: value for key, value in rope.items() if key not in ("rope_theta", "type")}


def _whole(number: float) -> int | float:
    return int(number) if number == int(number) else number


def _config_problems(
    config: Mapping[str, Any], rope: Mapping[str, Any], arch: Architecture
) -> Iterator[Reason]:
    activation = config.get("hidden_activation") or config.get("hidden_act")
    if activation not in arch.activations:
        known = ", ".join(sorted(arch.activations))
        yield Reason(f"hidden_act {activation!r}: MLC computes {known} here", ELSEWHERE)
    if rope["rope_type"] not in arch.ropes:
        known = ", ".join(sorted(arch.ropes))
        yield Reason(f"rope type {rope['rope_type']!r}: MLC knows {known} here", ELSEWHERE)
    for name, value in (("rope_theta", rope["rope_theta"]), *(
        (key, config.get(key)) for key in ("rms_norm_eps", "max_position_embeddings"))
    ):  # fmt: skip
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value <= 0:
            yield Reason(f"config.json: {name} is {value!r}", "a positive number is needed there")
    if float(rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1) != 1:
        yield Reason("MLC rotates whole heads, this model a part of each", ELSEWHERE)
    if not config.get("intermediate_size"):
        yield Reason("config.json: no intermediate_size", "it is needed there")
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    head = config.get("head_dim") or hidden // heads
    if arch.square and head * heads != hidden:
        yield Reason(f"{heads} heads of {head}: MLC wants {hidden} together here", ELSEWHERE)
    if arch.window == "pattern":
        yield from _pattern_problems(config)


def _pattern_problems(config: Mapping[str, Any]) -> Iterator[Reason]:
    kinds = config.get("layer_types")
    wanted = ["full_attention" if layer % PATTERN == PATTERN - 1 else "sliding_attention"
              for layer in range(config["num_hidden_layers"])]  # fmt: skip
    if kinds is not None and list(kinds) != wanted:
        yield Reason(f"layer_types: MLC lets every layer slide but each {PATTERN}th", ELSEWHERE)
    caps = [name for name in ("attn_logit_softcapping", "final_logit_softcapping")
            if config.get(name)]  # fmt: skip
    if caps:
        yield Reason(f"{' and '.join(caps)}: MLC has no such cap here", ELSEWHERE)
    if config.get("use_bidirectional_attention"):
        yield Reason("use_bidirectional_attention: MLC attends backwards only", ELSEWHERE)


def _tensor_problems(source: Source, arch: Architecture) -> Iterator[Reason]:
    """Biases and heads that MLC has no place for."""
    biased = [one for one in source.tensors if one.part == "bias" and one.role not in arch.biased]
    if biased:
        more = f" and {len(biased) - 1} more" if len(biased) > 1 else ""
        yield Reason(
            f"{biased[0].name}{more}: MLC's {source.model_type} has no such bias", ELSEWHERE
        )
    parts = {(one.role, one.block) for one in source.tensors if one.part == "bias"}
    for role, block in sorted(parts):
        joined = {other for other, name in arch.fused.items() if name == arch.fused.get(role)}
        if any((other, block) not in parts for other in joined):
            yield Reason(f"block {block}: some of {', '.join(sorted(joined))} have a bias, not all")
    if arch.head == "none" and not source.tied:
        yield Reason(
            f"the head is not the embedding: MLC's {source.model_type} has no place for it",
            'set "tie_word_embeddings": true in config.json if it is; else ' + ELSEWHERE,
        )
