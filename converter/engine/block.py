"""The float tensors of one block, as algorithms see them: by role, in one orientation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from qconvert.engine.reads import READS as READS  # of all that work on blocks

Key = tuple[str, str]  # (role, part): ("attn_q", "weight")


@dataclass(frozen=True, slots=True)
class Block:
    """Float32 tensors of block `index` on one device: matrices [out, in], vectors [n]."""

    index: int
    tensors: Mapping[Key, torch.Tensor]
    columns: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """By the names of inputs, [cols]: what reads the input multiplies it by this first. It is there
    where the output holds such a vector; ones, until a transform makes use of it."""

    def weight(self, role: str) -> torch.Tensor:
        return self.tensors[role, "weight"]

    def bias(self, role: str) -> torch.Tensor | None:
        return self.tensors.get((role, "bias"))

    def has(self, role: str) -> bool:
        return (role, "weight") in self.tensors

    @property
    def linears(self) -> tuple[str, ...]:
        """Roles of the linears, in the order of computation."""
        return tuple(role for role in READS if self.has(role))

    @property
    def inputs(self) -> Mapping[str, int]:
        """The distinct inputs, by name, and their channels."""
        return {READS[role]: self.weight(role).shape[1] for role in self.linears}

    def readers(self, name: str) -> tuple[str, ...]:
        """The linears that read the input `name`."""
        return tuple(role for role in self.linears if READS[role] == name)

    def changed(
        self,
        tensors: Mapping[Key, torch.Tensor],
        columns: Mapping[str, torch.Tensor] | None = None,
    ) -> Block:
        """The same block with some tensors and columns replaced; all of them must exist."""
        unknown = (set(tensors) - set(self.tensors)) | (set(columns or {}) - set(self.columns))
        if unknown:
            raise KeyError(f"block {self.index} has no {sorted(unknown, key=str)}")
        return Block(self.index, {**self.tensors, **tensors}, {**self.columns, **(columns or {})})
