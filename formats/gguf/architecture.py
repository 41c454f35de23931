"""What is to be known of a model type, and where a tensor goes. The facts: `architectures.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES, MODEL_TENSOR, TENSOR_NAMES

Bias = Literal["never", "optional", "required"]
Order = Literal["plain", "rope_q", "rope_k", "qkv_by_head"]
Windows = Literal["none", "all", "by_layer", "pattern"]

SILU = frozenset({"silu", "swish"})
GELU_TANH = frozenset({"gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_accurate"})


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a role's tensor goes, and what happens to it on the way."""

    tensor: MODEL_TENSOR
    bias: Bias = "never"
    order: Order = "plain"
    add: float = 0.0

    def name(self, block: int | None, part: str) -> str:
        """As in the file: "blk.0.attn_q.weight"."""
        stem = TENSOR_NAMES[self.tensor]
        return f"{stem.format(bid=block)}.{part}" if block is not None else f"{stem}.{part}"

    @property
    def in_block(self) -> bool:
        return "{bid}" in TENSOR_NAMES[self.tensor]


@dataclass(frozen=True, slots=True)
class Architecture:
    """One model type. `keys` renames settings to the names of Llama's configuration."""

    model_type: str
    arch: MODEL_ARCH
    slots: Mapping[str, Slot]  # by role
    defaults: Mapping[str, Any]  # transformers' own, for keys that config.json may lack
    keys: Mapping[str, str] = field(default_factory=dict)
    only: Mapping[str, frozenset[Any]] = field(default_factory=dict)  # what llama.cpp hard-codes
    activations: frozenset[str] = SILU
    norm: Literal["rms", "layer"] = "rms"
    ropes: frozenset[str] = frozenset({"default", "linear", "yarn"})
    local_rope: bool = False  # sliding layers have a rope of their own
    partial_rotary: bool = False
    free_head_dim: bool = False  # heads need not split the hidden size evenly
    windows: Windows = "none"  # how config.json says which layers slide
    soft_cap: bool = False  # final logits
    head_required: bool = False  # `output.weight` must be there, also where it is tied
    wide_blocks: int | None = None  # this many blocks count as llama.cpp's "70B" in the mixes,
    wide_when_grouped: bool = False  # only where several heads share one value head

    @property
    def name(self) -> str:
        """As in `general.architecture`."""
        return MODEL_ARCH_NAMES[self.arch]
