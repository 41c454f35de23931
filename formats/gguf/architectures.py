"""What llama.cpp knows of each model type, as data: tensors, row orders, keys and limits.

Facts from llama.cpp (`src/models/*.cpp`, `src/llama-model.cpp`: tensors that are created, which of
them are optional, the rope type) and from the defaults of transformers' configuration classes.
"""

from __future__ import annotations

from collections.abc import Mapping

from gguf.constants import MODEL_ARCH, MODEL_TENSOR

from qconvert.formats.gguf.architecture import GELU_TANH, Architecture, Bias, Slot

_T = MODEL_TENSOR


def _outer(bias: Bias = "never", add: float = 0.0) -> dict[str, Slot]:
    return {
        "embedding": Slot(_T.TOKEN_EMBD),
        "final_norm": Slot(_T.OUTPUT_NORM, bias, add=add),
        "head": Slot(_T.OUTPUT),
    }


def _split_attention(bias_o: Bias, *, rope_order: bool) -> dict[str, Slot]:
    """Separate q, k, v; `rope_order` where llama.cpp rotates neighbouring pairs of a head."""
    return {
        "attn_q": Slot(_T.ATTN_Q, "optional", "rope_q" if rope_order else "plain"),
        "attn_k": Slot(_T.ATTN_K, "optional", "rope_k" if rope_order else "plain"),
        "attn_v": Slot(_T.ATTN_V, "optional"),
        "attn_o": Slot(_T.ATTN_OUT, bias_o),
    }


def _gated_mlp(bias: Bias = "never") -> dict[str, Slot]:
    return {
        "ffn_gate": Slot(_T.FFN_GATE, bias),
        "ffn_up": Slot(_T.FFN_UP, bias),
        "ffn_down": Slot(_T.FFN_DOWN, bias),
    }


def _norms(bias: Bias = "never", add: float = 0.0) -> dict[str, Slot]:
    return {
        "attn_norm": Slot(_T.ATTN_NORM, bias, add=add),
        "ffn_norm": Slot(_T.FFN_NORM, bias, add=add),
    }


def _head_norms(add: float = 0.0) -> dict[str, Slot]:
    return {
        "attn_q_norm": Slot(_T.ATTN_Q_NORM, add=add),
        "attn_k_norm": Slot(_T.ATTN_K_NORM, add=add),
    }


def _gpt_block() -> dict[str, Slot]:
    return {
        **_norms("required"),
        "attn_o": Slot(_T.ATTN_OUT, "required"),
        "ffn_up": Slot(_T.FFN_UP, "required"),
        "ffn_down": Slot(_T.FFN_DOWN, "required"),
    }


_NO_SOFT_CAP = {
    "attn_logit_softcapping": frozenset({None}),
    "final_logit_softcapping": frozenset({None}),
}
_LLAMA_SLOTS = {
    **_outer(),
    **_norms(),
    **_split_attention("optional", rope_order=True),
    **_gated_mlp("optional"),
}
_QWEN_DEFAULTS = {
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "tie_word_embeddings": False,
}

_ALL = (
    Architecture(
        model_type="llama",
        arch=MODEL_ARCH.LLAMA,
        slots=_LLAMA_SLOTS,
        defaults={
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "max_position_embeddings": 2048,
        },
        only=_NO_SOFT_CAP,
        ropes=frozenset({"default", "linear", "yarn", "llama3", "longrope"}),
        free_head_dim=True,
        wide_blocks=80,
        wide_when_grouped=True,
    ),
    Architecture(
        model_type="mistral",
        arch=MODEL_ARCH.LLAMA,
        slots=_LLAMA_SLOTS,
        defaults={
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
        },
        only=_NO_SOFT_CAP,
        ropes=frozenset({"default", "linear", "yarn", "llama3", "longrope"}),
        free_head_dim=True,
        windows="all",
        wide_blocks=80,
        wide_when_grouped=True,
    ),
    Architecture(
        model_type="qwen2",
        arch=MODEL_ARCH.QWEN2,
        slots={
            **_outer(),
            **_norms(),
            **_split_attention("never", rope_order=False),
            **_gated_mlp(),
        },
        defaults=_QWEN_DEFAULTS,
        only=_NO_SOFT_CAP,
        windows="by_layer",
        wide_blocks=80,
    ),
    Architecture(
        model_type="qwen3",
        arch=MODEL_ARCH.QWEN3,
        slots={
            **_outer(),
            **_norms(),
            **_head_norms(),
            **_split_attention("never", rope_order=False),
            **_gated_mlp(),
        },
        defaults={**_QWEN_DEFAULTS, "head_dim": 128},
        only=_NO_SOFT_CAP,
        free_head_dim=True,
        windows="by_layer",
    ),
    Architecture(
        model_type="smollm3",
        arch=MODEL_ARCH.SMOLLM3,
        slots={
            **_outer(),
            **_norms(),
            **_split_attention("never", rope_order=True),
            **_gated_mlp(),
        },
        defaults={
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-6,
            "rope_theta": 2000000.0,
            "hidden_act": "silu",
            "max_position_embeddings": 32768,
            "no_rope_layer_interval": 4,
            "tie_word_embeddings": True,
        },
        only={**_NO_SOFT_CAP, "use_sliding_window": frozenset({None, False})},
        free_head_dim=True,
    ),
    Architecture(
        model_type="gemma3_text",
        arch=MODEL_ARCH.GEMMA3,
        slots={
            **_outer(add=1.0),
            **_norms(add=1.0),
            **_head_norms(add=1.0),
            "attn_post_norm": Slot(_T.ATTN_POST_NORM, add=1.0),
            "ffn_post_norm": Slot(_T.FFN_POST_NORM, add=1.0),
            **_split_attention("never", rope_order=False),
            **_gated_mlp(),
        },
        defaults={
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "vocab_size": 262208,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "rope_local_base_freq": 10000.0,
            "hidden_activation": "gelu_pytorch_tanh",
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
            "sliding_window_pattern": 6,
            "query_pre_attn_scalar": 256,
            "tie_word_embeddings": True,
        },
        keys={"hidden_act": "hidden_activation"},
        only={
            "attn_logit_softcapping": frozenset({None}),
            "use_bidirectional_attention": frozenset({None, False}),
        },
        activations=GELU_TANH,
        ropes=frozenset({"default", "linear"}),
        local_rope=True,
        free_head_dim=True,
        windows="pattern",
        soft_cap=True,
    ),
    Architecture(
        model_type="phi3",
        arch=MODEL_ARCH.PHI3,
        slots={
            **_outer(),
            **_norms(),
            "attn_qkv": Slot(_T.ATTN_QKV),
            "attn_o": Slot(_T.ATTN_OUT),
            "ffn_gate_up": Slot(_T.FFN_UP),  # gate rows, then up rows, as llama.cpp's swiglu wants
            "ffn_down": Slot(_T.FFN_DOWN),
        },
        defaults={
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
            "sliding_window": None,
            "partial_rotary_factor": 1.0,
        },
        only=_NO_SOFT_CAP,
        ropes=frozenset({"default", "longrope"}),
        partial_rotary=True,
        windows="all",
    ),
    Architecture(
        model_type="gpt_neox",
        arch=MODEL_ARCH.GPTNEOX,
        slots={
            **_outer("required"),
            **_gpt_block(),
            "attn_qkv": Slot(_T.ATTN_QKV, "required", "qkv_by_head"),
        },
        defaults={
            "layer_norm_eps": 1e-5,
            "rotary_emb_base": 10000.0,
            "rotary_pct": 0.25,
            "hidden_act": "gelu",
            "max_position_embeddings": 2048,
            "use_parallel_residual": True,
        },
        keys={
            "norm_eps": "layer_norm_eps",
            "rope_theta": "rotary_emb_base",
            "partial_rotary_factor": "rotary_pct",
        },
        only=_NO_SOFT_CAP,
        activations=GELU_TANH,
        norm="layer",
        partial_rotary=True,
        head_required=True,
    ),
    Architecture(
        model_type="gpt2",
        arch=MODEL_ARCH.GPT2,
        slots={
            **_outer("required"),
            "position": Slot(_T.POS_EMBD),
            **_gpt_block(),
            "attn_qkv": Slot(_T.ATTN_QKV, "required"),
        },
        defaults={
            "n_embd": 768,
            "n_layer": 12,
            "n_head": 12,
            "n_positions": 1024,
            "n_inner": None,
            "vocab_size": 50257,
            "layer_norm_epsilon": 1e-5,
            "activation_function": "gelu_new",
            "tie_word_embeddings": True,
        },
        keys={
            "hidden_size": "n_embd",
            "num_hidden_layers": "n_layer",
            "num_attention_heads": "n_head",
            "intermediate_size": "n_inner",
            "max_position_embeddings": "n_positions",
            "norm_eps": "layer_norm_epsilon",
            "hidden_act": "activation_function",
        },
        only={
            **_NO_SOFT_CAP,
            "scale_attn_weights": frozenset({None, True}),
            "scale_attn_by_inverse_layer_idx": frozenset({None, False}),
            "add_cross_attention": frozenset({None, False}),
        },
        activations=GELU_TANH,
        norm="layer",
        ropes=frozenset(),
    ),
)

ARCHITECTURES: Mapping[str, Architecture] = {known.model_type: known for known in _ALL}
