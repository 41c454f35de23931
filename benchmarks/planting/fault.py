"""What a fault is, and where in a model faults are planted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from planting.output import Culprits, Facts

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
NORMS = ("input_layernorm", "post_attention_layernorm")
EMBEDDING, HEAD, FINAL = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to damage an output."""

    name: str
    about: str  # what a tool did, or what happened to a file
    source: str  # where that was seen: a thread, or a row of a list of traps
    plant: Callable[[Any], Culprits]
    """Damages an `Output`; the names of which a right diagnosis gives one. `Inapplicable` where
    this output has no room for it."""
    on: tuple[str, ...]  # names of good outputs: `planting.goods`
    numbers: bool = True  # what a runtime computes must change
    storage: bool = False  # bytes rot after writing: checksums stay those of the good file


def here(facts: Facts) -> int:
    """The block that is damaged."""
    return facts.blocks // 4


def there(facts: Facts) -> int:
    """The block that is mistaken for it."""
    return facts.blocks - 1


def named(block: int, part: str, end: str = "weight") -> str:
    """A checkpoint tensor: ("q_proj", "input_layernorm", ...)."""
    room = "self_attn." if part in (*ATTENTION, "q_norm", "k_norm") else ""
    room = "mlp." if part in MLP else room
    return f"model.layers.{block}.{room}{part}.{end}"


def linears(facts: Facts) -> list[str]:
    """Every linear of the blocks."""
    parts = (*ATTENTION, *MLP)
    return [named(block, part) for block in range(facts.blocks) for part in parts]


def block_tensors(block: int) -> list[str]:
    return [named(block, part) for part in (*NORMS, *ATTENTION, *MLP)]
