"""What is to be known of each model type to write its graph, as data.

Sizes and tensors are those of the source; here is what its configuration leaves unsaid: defaults of
transformers 5 (`models/<model_type>/configuration_<model_type>.py`), and which switches matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Windows = Literal["none", "all", "by_layer", "without_rope", "pattern"]

SILU = "silu"
GELU = "gelu"
GELU_TANH = "gelu_tanh"

ACTIVATIONS: Mapping[str, str] = {
    "silu": SILU, "swish": SILU, "gelu": GELU,
    **dict.fromkeys(("gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_accurate"), GELU_TANH),
}  # fmt: skip
"""Names in configurations -> what the graph computes."""

ROPES = frozenset({"default", "linear", "llama3", "yarn", "longrope"})
"""Kinds of rope of which the angles do not depend on the text, within the context written."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """One model type whose blocks are norm, attention, norm, gated MLP."""

    model_type: str
    genai: str  # what onnxruntime-genai calls it
    defaults: Mapping[str, Any]  # transformers' own, for keys that config.json may lack
    activation: str = "hidden_act"  # the key that names it
    windows: Windows = "none"  # how config.json says which layers slide
    local_rope: bool = False  # sliding layers have a rope of their own
    skips_rope: bool = False  # some layers have none
    partial_rotary: bool = False  # only the first values of a head may be rotated
    scaled_embedding: bool = False  # by the root of the hidden size
    norm_offset: float = 0.0  # a norm multiplies by its weight plus this
    score_scale: str = ""  # the key whose value ** -0.5 replaces head_size ** -0.5
    soft_cap: str = ""  # the key of the cap of the final logits
    only: Mapping[str, frozenset[Any]] = field(default_factory=dict)  # what else is not computed


_NO_CAPS = {
    "attn_logit_softcapping": frozenset({None}),
    "final_logit_softcapping": frozenset({None}),
}
_ROPE = {"rope_theta": 10000.0, "hidden_act": "silu", "rms_norm_eps": 1e-6}
_QWEN = {
    **_ROPE, "max_position_embeddings": 32768,
    "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28,
}  # fmt: skip

_ALL = (
    Architecture("llama", "llama", {**_ROPE, "max_position_embeddings": 2048}, only=_NO_CAPS),
    Architecture(
        "mistral", "mistral",
        {**_ROPE, "max_position_embeddings": 131072, "sliding_window": 4096},
        windows="all", only=_NO_CAPS,
    ),
    Architecture("qwen2", "qwen2", _QWEN, windows="by_layer", only=_NO_CAPS),
    Architecture("qwen3", "qwen3", _QWEN, windows="by_layer", only=_NO_CAPS),
    Architecture(
        "smollm3", "smollm3",
        {**_ROPE, "rope_theta": 2000000.0, "max_position_embeddings": 32768,
         "no_rope_layer_interval": 4, "use_sliding_window": False},
        windows="without_rope", skips_rope=True, only=_NO_CAPS,
    ),
    Architecture(
        "gemma3_text", "gemma3_text",
        {"rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "rms_norm_eps": 1e-6,
         "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 131072,
         "sliding_window": 4096, "sliding_window_pattern": 6, "query_pre_attn_scalar": 256},
        activation="hidden_activation", windows="pattern", local_rope=True,
        scaled_embedding=True, norm_offset=1.0,
        score_scale="query_pre_attn_scalar", soft_cap="final_logit_softcapping",
        only={"attn_logit_softcapping": frozenset({None}),
              "use_bidirectional_attention": frozenset({None, False})},
    ),
    Architecture(
        "phi3", "phi3",
        {**_ROPE, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096,
         "original_max_position_embeddings": 4096, "partial_rotary_factor": 1.0},
        windows="all", partial_rotary=True, only=_NO_CAPS,
    ),
)  # fmt: skip

ARCHITECTURES: Mapping[str, Architecture] = {known.model_type: known for known in _ALL}
