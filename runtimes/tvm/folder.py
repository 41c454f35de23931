"""What an MLC folder says of its model, and whether our graph computes it: all reasons at once.

Names and fields: mlc-ai/mlc-llm 79d603f, `python/mlc_llm/model/{llama,mistral,qwen2,qwen3,gemma}`.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qconvert.runtimes.tvm.schemes import SCHEMES, Scheme

Stored = Mapping[str, tuple[tuple[int, ...], str]]  # name -> shape, dtype


@dataclass(frozen=True, slots=True)
class Family:
    """How the models of one `model_type` differ from Llama."""

    qkv: str = "qkv_proj"  # the joined linear of query, key and value
    qkv_bias: bool | str = False  # or the field of the configuration that says so
    out_bias: str = ""  # the field that says so; empty: never
    head_norms: bool = False  # RMSNorm over each head of query and key
    gate: str = "silu"
    scales_embedding: bool = False  # by the root of the hidden size
    always_tied: bool = False
    theta: float = 10000.0  # where the configuration is silent


FAMILIES: Mapping[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family("c_attn", qkv_bias=True),
    "qwen3": Family(
        "c_attn", qkv_bias="attention_bias", out_bias="attention_bias", head_norms=True
    ),
    "gemma": Family(gate="gelu_tanh", scales_embedding=True, always_tied=True),
}
GATES: Mapping[str, str] = {
    "silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh",
}  # fmt: skip
ROPE_TYPES = ("default", "llama3")


@dataclass(frozen=True, slots=True)
class Facts:
    """A model that our graph computes."""

    scheme: Scheme
    qkv: str
    vocab: int
    hidden: int
    inner: int  # of the feed-forward
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    theta: float
    scaling: Mapping[str, Any]  # of rotary positions; empty: none
    tied: bool
    qkv_bias: bool
    out_bias: bool
    head_norms: bool
    gate: str
    embedding_scale: float
    reach: int  # positions that it was made for, and that no window slides over
    ends: tuple[int, ...]  # tokens that end a text


class Unfit(Exception):
    """The folder is not one that our graph computes; the message has every reason."""


def read_facts(folder: Path) -> Facts:
    """Facts of `mlc-chat-config.json`, checked against the tensors that `tensor-cache.json` lists;
    `Unfit`."""
    config = json.loads((folder / "mlc-chat-config.json").read_text("utf-8"))
    problems = list(_unknown(config))
    if problems:
        raise Unfit("; ".join(problems))
    facts = _facts(config)
    problems = list(_differences(stored(facts), _listed(folder)))
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise Unfit("; ".join(problems[:8]) + more)
    return facts


def _unknown(config: Mapping[str, Any]) -> Iterator[str]:
    """What of a configuration our graph does not compute."""
    model = config["model_config"]
    family, scheme = config["model_type"], config["quantization"]
    if family not in FAMILIES:
        known = ", ".join(FAMILIES)
        yield f"our TVM graph does not compute the model type {family!r}, only {known}"
    if scheme not in SCHEMES:
        known = ", ".join(SCHEMES)
        yield f"our TVM graph does not decode the quantization {scheme!r}, only {known}"
    scaling = model.get("rope_scaling") or {}
    kind = _rope_type(scaling)
    if kind not in ROPE_TYPES:
        yield f"our TVM graph does not compute rotary positions of the type {kind!r}, only llama3"
    gate = model.get("hidden_act") or model.get("hidden_activation") or "silu"
    if gate not in GATES:
        yield f"our TVM graph does not compute the activation {gate!r}, only {', '.join(GATES)}"
    for field in ("tensor_parallel_shards", "pipeline_parallel_stages"):
        if config.get(field, 1) not in (None, 1):
            yield f"our TVM graph computes in one piece, and {field} is {config[field]}"
    if FAMILIES.get(family, Family()).qkv_bias is False and model.get("attention_bias"):
        yield f"our TVM graph knows no attention bias of the model type {family!r}"


def _given(config: Mapping[str, Any], field: str) -> int:
    """A number of positions; what is not above 0 is no limit."""
    found = int(config["model_config"].get(field) or config.get(field) or -1)
    return found if found > 0 else sys.maxsize


def _rope_type(scaling: Mapping[str, Any]) -> str:
    return str(scaling.get("rope_type") or scaling.get("type") or "default")


def _facts(config: Mapping[str, Any]) -> Facts:
    model = config["model_config"]
    family = FAMILIES[config["model_type"]]
    heads, hidden = int(model["num_attention_heads"]), int(model["hidden_size"])
    named = model.get("hidden_act") or model.get("hidden_activation")
    bias = family.qkv_bias
    scaling = model.get("rope_scaling") or {}
    ends = config.get("eos_token_id")
    return Facts(
        scheme=SCHEMES[config["quantization"]],
        qkv=family.qkv,
        vocab=int(model["vocab_size"]),
        hidden=hidden,
        inner=int(model["intermediate_size"]),
        layers=int(model["num_hidden_layers"]),
        heads=heads,
        kv_heads=int(model.get("num_key_value_heads") or heads),
        head_dim=int(model.get("head_dim") or hidden // heads),
        eps=float(model["rms_norm_eps"]),
        theta=float(
            model.get("position_embedding_base") or model.get("rope_theta") or family.theta
        ),
        scaling=scaling if _rope_type(scaling) == "llama3" else {},
        tied=family.always_tied or bool(model.get("tie_word_embeddings", False)),
        qkv_bias=bool(model.get(bias, False)) if isinstance(bias, str) else bias,
        out_bias=bool(family.out_bias and model.get(family.out_bias, False)),
        head_norms=family.head_norms,
        gate=GATES[named] if named else family.gate,
        embedding_scale=math.sqrt(hidden) if family.scales_embedding else 1.0,
        reach=min(_given(config, "context_window_size"), _given(config, "sliding_window_size")),
        ends=tuple(ends) if isinstance(ends, list) else () if ends is None else (int(ends),),
    )


def stored(facts: Facts) -> dict[str, tuple[tuple[int, ...], str]]:
    """Every tensor of the folder: its name -> shape and dtype."""
    scheme, found = facts.scheme, dict[str, tuple[tuple[int, ...], str]]()

    def matrix(
        name: str, rows: int, columns: int, *, end: bool = False, linear: bool = True
    ) -> None:
        if not scheme.bits or (end and scheme.plain_ends):
            found[f"{name}.weight"] = ((rows, columns), scheme.dtype)
            return
        codes, scales = (rows, scheme.words(columns)), (rows, scheme.groups(columns))
        if scheme.transposed and linear:
            codes, scales = codes[::-1], scales[::-1]
        found[f"{name}.q_weight"] = (codes, "uint32")
        found[f"{name}.q_scale"] = (scales, scheme.dtype)

    def vector(name: str, size: int) -> None:
        found[name] = ((size,), scheme.dtype)

    wide = (facts.heads + 2 * facts.kv_heads) * facts.head_dim
    matrix("model.embed_tokens", facts.vocab, facts.hidden, end=True, linear=False)
    for number in range(facts.layers):
        layer = f"model.layers.{number}"
        matrix(f"{layer}.self_attn.{facts.qkv}", wide, facts.hidden)
        if facts.qkv_bias:
            vector(f"{layer}.self_attn.{facts.qkv}.bias", wide)
        if facts.out_bias:
            vector(f"{layer}.self_attn.o_proj.bias", facts.hidden)
        for norm in ("q_norm", "k_norm") if facts.head_norms else ():
            vector(f"{layer}.self_attn.{norm}.weight", facts.head_dim)
        matrix(f"{layer}.self_attn.o_proj", facts.hidden, facts.heads * facts.head_dim)
        matrix(f"{layer}.mlp.gate_up_proj", 2 * facts.inner, facts.hidden)
        matrix(f"{layer}.mlp.down_proj", facts.hidden, facts.inner)
        vector(f"{layer}.input_layernorm.weight", facts.hidden)
        vector(f"{layer}.post_attention_layernorm.weight", facts.hidden)
    vector("model.norm.weight", facts.hidden)
    if not facts.tied:
        matrix("lm_head", facts.vocab, facts.hidden, end=True)
    return found


def transposed(facts: Facts, name: str) -> bool:
    """Whether a tensor of the folder lies the other way round than a matrix [out, in]."""
    codes = name.endswith((".q_weight", ".q_scale"))
    return facts.scheme.transposed and codes and not name.startswith("model.embed_tokens.")


def _listed(folder: Path) -> Stored:
    """What `tensor-cache.json` says."""
    cache = json.loads((folder / "tensor-cache.json").read_text("utf-8"))
    return {
        record["name"]: (tuple(record["shape"]), record["dtype"])
        for shard in cache["records"]
        for record in shard["records"]
    }


def _differences(expected: Stored, found: Stored) -> Iterator[str]:
    """The C++ loader asks for tensors by name and takes any shape: kernels would read beyond."""
    for name, (shape, dtype) in expected.items():
        if name not in found:
            yield f"the folder lacks {name}"
        elif found[name] != (shape, dtype):
            there = f"{found[name][1]} {list(found[name][0])}"
            yield f"{name} is {there}, and should be {dtype} {list(shape)}"
    for name in found:
        if name not in expected:
            yield f"the folder has {name}, unknown to this model"
