"""The linears of a decoder as TensorRT-LLM's models hold them, by config.json alone.

Source: NVIDIA/TensorRT-LLM, `_torch/modules/attention.py` and `gated_mlp.py`: q, k, v are one
linear and gate, up another, both cut along their outputs; o and down are cut along their inputs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["qkv", "gate_up", "vanilla"]
KEYS = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")


@dataclass(frozen=True, slots=True)
class Part:
    """Outputs of one kind: `count` heads of `size` rows, or rows alone."""

    count: int
    size: int = 1
    repeats: bool = False  # heads of keys and values: each rank has one where they are fewer

    def of_rank(self, tp: int) -> int | None:
        """Rows that one of `tp` ranks holds; None where they do not come apart."""
        if self.count % tp == 0:
            return self.count // tp * self.size
        return self.size if self.repeats and tp % self.count == 0 else None


@dataclass(frozen=True, slots=True)
class Member:
    """One stored linear."""

    module: str  # "model.layers.0.self_attn.q_proj"
    parts: tuple[Part, ...]
    cols: int

    @property
    def rows(self) -> int:
        return sum(one.count * one.size for one in self.parts)


@dataclass(frozen=True, slots=True)
class Fused:
    """One linear of the program: its stored members."""

    kind: Kind
    members: tuple[Member, ...]

    @property
    def name(self) -> str:
        """ "model.layers.0.self_attn.q_proj, k_proj, v_proj" """
        first, *others = (one.module for one in self.members)
        return ", ".join([first, *(other.rpartition(".")[2] for other in others)])

    @property
    def looked_up(self) -> str:
        """The name by which mixed precision tells of it."""
        start, _, last = self.members[0].module.rpartition(".")
        return f"{start}.{'q_proj' if self.kind == 'qkv' else last}"

    @property
    def stored_joined(self) -> bool:
        return any(len(one.parts) > 1 for one in self.members)

    def repeats(self, tp: int) -> bool:
        """Whether some of `tp` ranks hold the same heads of keys and values."""
        return any(part.repeats and part.count < tp for one in self.members for part in one.parts)

    def shard(self, tp: int) -> tuple[int, tuple[int, ...]] | None:
        """Columns, and rows of each part, that one of `tp` ranks holds; None where it does not come
        apart."""
        cols = self.members[0].cols
        parts = [part for one in self.members for part in one.parts]
        if self.kind == "vanilla":
            return None if cols % tp else (cols // tp, tuple(one.count for one in parts))
        rows = [one.of_rank(tp) for one in parts]
        held = tuple(one for one in rows if one is not None)
        return (cols, held) if len(held) == len(rows) else None


def fused_linears(config: Mapping[str, Any], stored: Collection[str]) -> list[Fused]:
    """Of all blocks; empty for a model that is no such decoder. `stored`: names of tensors, which
    tell whether q, k, v and gate, up are stored joined."""
    if not all(isinstance(config.get(key), int) for key in KEYS):
        return []
    blocks, hidden, inner, heads = (int(config[key]) for key in KEYS)
    size = int(config.get("head_dim") or hidden // heads)
    kept = int(config.get("num_key_value_heads") or heads)
    query, other = Part(heads, size), Part(kept, size, repeats=True)
    split: dict[Kind, dict[str, tuple[Part, ...]]] = {
        "qkv": {"q_proj": (query,), "k_proj": (other,), "v_proj": (other,)},
        "gate_up": {"gate_proj": (Part(inner),), "up_proj": (Part(inner),)},
    }

    def joined(start: str, kind: Kind) -> tuple[Member, ...]:
        whole = f"{start}.{kind}_proj"
        if f"{whole}.weight" in stored:
            parts = tuple(part for one in split[kind].values() for part in one)
            return (Member(whole, parts, hidden),)
        return tuple(Member(f"{start}.{name}", parts, hidden)
                     for name, parts in split[kind].items())  # fmt: skip

    def of_block(start: str) -> Iterator[Fused]:
        attention, mlp = f"{start}.self_attn", f"{start}.mlp"
        yield Fused("qkv", joined(attention, "qkv"))
        yield Fused("vanilla", (Member(f"{attention}.o_proj", (Part(hidden),), heads * size),))
        yield Fused("gate_up", joined(mlp, "gate_up"))
        yield Fused("vanilla", (Member(f"{mlp}.down_proj", (Part(hidden),), inner),))

    return [one for block in range(blocks) for one in of_block(f"model.layers.{block}")]
