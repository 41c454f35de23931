"""What MLC knows of each model type, as data.

Source: mlc-ai/mlc-llm 79d603f, `python/mlc_llm/model/<name>/<name>_{model,loader}.py`, and
`loader/standard_loader.py`. Names in MLC are those of the checkpoint but for joined linears.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

_GATE_UP = {"ffn_gate": "gate_up_proj", "ffn_up": "gate_up_proj"}
_QKV = {"attn_q": "qkv_proj", "attn_k": "qkv_proj", "attn_v": "qkv_proj", **_GATE_UP}
_C_ATTN = {"attn_q": "c_attn", "attn_k": "c_attn", "attn_v": "c_attn", **_GATE_UP}

NORMS = frozenset({
    "attn_norm", "ffn_norm", "final_norm", "attn_post_norm", "ffn_post_norm", "attn_q_norm",
    "attn_k_norm",
})  # fmt: skip
SILU = frozenset({"silu", "swish"})
GELU = frozenset({"gelu", "gelu_pytorch_tanh"})

ONE_BASE = (
    "MLC (79d603f) rotates all layers of a Gemma 3 by one base and without scaling, where the "
    "model has a base of its own for sliding layers: its output differs from the model's"
)
NO_CAP = "MLC (79d603f) leaves out Gemma 2's cap on attention scores: its output differs a little"


@dataclass(frozen=True, slots=True)
class Architecture:
    """One model type."""

    fused: Mapping[str, str]  # role of a linear -> last part of the name that it is joined under
    fields: tuple[str, ...]  # of model_config, in MLC's order
    inner: tuple[str, ...] = ()  # of model_config's text_config, where it has one
    prefix: str = ""  # of every name
    head: Literal["own", "none", "always"] = "own"
    """ "own": the model's; "none": MLC has no place for one; "always": also where it is tied."""
    biased: frozenset[str] = frozenset()  # roles of linears that may have a bias
    norm_add: float = 0.0  # norms are stored as w + 1 in Gemma
    activations: frozenset[str] = SILU
    ropes: frozenset[str] = frozenset({"default"})
    chunk: int = 8192  # largest piece of a prompt that is computed at once
    window: Literal["ignored", "own", "rolling", "pattern"] = "ignored"
    """What MLC does with a sliding window. "ignored": nothing, so the context ends where the window
    would begin to slide; "own": the same, as Gemma 2's own setting says it; "rolling": all layers
    slide; "pattern": five layers of six do."""
    square: bool = False  # heads must split the hidden size evenly
    defaults: Mapping[str, Any] = field(default_factory=dict)  # for keys that config.json may lack
    notes: tuple[str, ...] = ()


_SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers",
          "rms_norm_eps", "vocab_size")  # fmt: skip
_QWEN = ("hidden_act", "hidden_size", "intermediate_size", "num_attention_heads",
         "num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "rope_theta", "vocab_size",
         "tie_word_embeddings", "context_window_size", "prefill_chunk_size",
         "tensor_parallel_shards", "head_dim", "dtype", "max_batch_size")  # fmt: skip
_GEMMA = ("hidden_size", "intermediate_size", "attention_bias", "num_attention_heads",
          "num_key_value_heads", "head_dim", "num_hidden_layers", "rms_norm_eps", "vocab_size",
          "hidden_activation", "position_embedding_base", "context_window_size",
          "prefill_chunk_size", "tensor_parallel_shards", "max_batch_size")  # fmt: skip
_GEMMA_DEFAULTS = {
    "rms_norm_eps": 1e-6, "hidden_activation": "gelu_pytorch_tanh", "rope_theta": 10000.0,
    "max_position_embeddings": 8192, "attention_bias": False,
}  # fmt: skip
_DEFAULTS = {"rms_norm_eps": 1e-6, "hidden_act": "silu", "rope_theta": 10000.0}

ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(
        _QKV,
        (*_SIZES, "tie_word_embeddings", "position_embedding_base", "rope_scaling",
         "context_window_size", "prefill_chunk_size", "num_key_value_heads", "head_dim",
         "tensor_parallel_shards", "pipeline_parallel_stages", "max_batch_size",
         "disaggregation"),
        ropes=frozenset({"default", "llama3"}),
        defaults={**_DEFAULTS, "max_position_embeddings": 2048},
    ),
    "mistral": Architecture(
        _QKV,
        (*_SIZES, "position_embedding_base", "num_key_value_heads", "head_dim",
         "context_window_size", "sliding_window_size", "prefill_chunk_size",
         "attention_sink_size", "tensor_parallel_shards", "max_batch_size"),
        head="always",
        window="rolling",
        defaults={**_DEFAULTS, "max_position_embeddings": 131072, "sliding_window": 4096},
    ),
    "qwen2": Architecture(
        _C_ATTN,
        _QWEN,
        biased=frozenset({"attn_q", "attn_k", "attn_v"}),
        square=True,
        defaults={**_DEFAULTS, "max_position_embeddings": 32768},
    ),
    "qwen3": Architecture(
        _C_ATTN,
        (*_QWEN[:3], "attention_bias", *_QWEN[3:], "weight_block_size"),
        biased=frozenset({"attn_q", "attn_k", "attn_v", "attn_o"}),
        chunk=2048,
        defaults={**_DEFAULTS, "max_position_embeddings": 32768, "attention_bias": False},
    ),
    "gemma": Architecture(
        _QKV, _GEMMA, head="none", norm_add=1.0, activations=GELU, defaults=_GEMMA_DEFAULTS
    ),
    "gemma2": Architecture(
        _QKV,
        (*_GEMMA, "attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar",
         "sliding_window"),
        head="none",
        norm_add=1.0,
        activations=GELU,
        window="own",
        defaults={**_GEMMA_DEFAULTS, "attn_logit_softcapping": 50.0, "sliding_window": 4096,
                  "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 256},
        notes=(NO_CAP,),
    ),
    "gemma3_text": Architecture(
        _GATE_UP,
        ("text_config", "vocab_size", "tensor_parallel_shards", "max_batch_size",
         "context_window_size", "sliding_window_size", "prefill_chunk_size", "is_text_model"),
        ("hidden_size", "intermediate_size", "num_hidden_layers", "attention_bias",
         "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps",
         "hidden_activation", "position_embedding_base", "context_window_size",
         "prefill_chunk_size", "query_pre_attn_scalar", "sliding_window_size"),
        prefix="language_model.",
        head="none",
        norm_add=1.0,
        activations=GELU,
        ropes=frozenset({"default", "linear"}),
        window="pattern",
        defaults={**_GEMMA_DEFAULTS, "rope_theta": 1_000_000.0, "max_position_embeddings": 131072,
                  "query_pre_attn_scalar": 256, "sliding_window": 4096},
        notes=(ONE_BASE,),
    ),
}  # fmt: skip
