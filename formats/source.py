"""What a target is told of the model to be written. `converter.checkpoint` provides it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

Dtype = Literal["F32", "F16", "BF16"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)

ROLES = (
    "embedding", "position", "embedding_norm", "final_norm", "head",
    "attn_norm", "attn_q", "attn_k", "attn_v", "attn_qkv", "attn_o", "attn_q_norm", "attn_k_norm",
    "attn_post_norm", "ffn_norm", "ffn_gate", "ffn_up", "ffn_gate_up", "ffn_down", "ffn_post_norm",
)  # fmt: skip
"""What a tensor does in a decoder, whatever its name in a checkpoint."""


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """One tensor of the checkpoint, known from headers alone."""

    name: str  # as in the checkpoint: "model.layers.0.self_attn.q_proj.weight"
    role: str  # one of ROLES
    part: Literal["weight", "bias"]
    block: int | None  # None outside the blocks
    shape: tuple[int, ...]  # canonical: [out, in] for matrices, also where the file is transposed
    dtype: Dtype
    transposed: bool = False  # stored as [in, out] (GPT-2's Conv1D)

    @property
    def nbytes(self) -> int:
        """Bytes in the checkpoint."""
        return math.prod(self.shape) * (4 if self.dtype == "F32" else 2)


class Source(Protocol):
    """A checkpoint as a target sees it: facts first, weights only on request."""

    @property
    def folder(self) -> Path: ...
    @property
    def config(self) -> Mapping[str, Any]:
        """config.json of the text model (nested text_config is already lifted out)."""
        ...

    @property
    def model_type(self) -> str: ...
    @property
    def tied(self) -> bool:
        """True when the head is the embedding and no head tensor is stored."""
        ...

    @property
    def tensors(self) -> tuple[SourceTensor, ...]:
        """All tensors: those before the blocks, block by block, those after."""
        ...

    def rows(self, tensor: SourceTensor, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop) as float32, canonical orientation. Vectors count as one row: [n]."""
        ...
