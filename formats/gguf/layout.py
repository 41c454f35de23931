"""Where each tensor of a checkpoint goes in a GGUF file: name, row order, what is added."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.gguf.architecture import Architecture, Slot
from qconvert.formats.gguf.header import MAX_NAME
from qconvert.formats.gguf.hyperparameters import Hyperparameters
from qconvert.formats.gguf.mixes import CATEGORIES
from qconvert.formats.gguf.rope import Rope
from qconvert.formats.refusal import Reason
from qconvert.formats.source import Source, SourceTensor


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor of the output before its type is chosen."""

    name: str
    shape: tuple[int, ...]
    category: str  # as in `mixes`
    block: int | None
    source: SourceTensor | None = None
    values: NDArray[np.float32] | None = None
    row_order: NDArray[np.intp] | None = None
    add: float = 0.0


def place(
    source: Source, arch: Architecture, sizes: Hyperparameters, rope: Rope | None
) -> tuple[tuple[Placed, ...], tuple[Reason, ...]]:
    """All tensors of the output in the order of the file, and why some cannot be placed."""
    placed: list[Placed] = []
    reasons: list[Reason] = []
    for tensor in source.tensors:
        slot = arch.slots.get(tensor.role)
        if slot is None or (tensor.part == "bias" and slot.bias == "never"):
            reasons.append(_no_place(tensor, arch))
            continue
        placed.append(_placed(tensor, slot, sizes))
        if tensor.role == "embedding":
            placed += _generated(rope)
            if source.tied and arch.head_required:
                placed.append(_placed(tensor, arch.slots["head"], sizes, role="head"))
    reasons += _missing({one.name for one in placed}, source.tied, arch, sizes.blocks)
    reasons += [Reason(f"tensor name {n.name!r} is too long") for n in placed
                if len(n.name) > MAX_NAME]  # fmt: skip
    return tuple(placed), tuple(reasons)


def _no_place(tensor: SourceTensor, arch: Architecture) -> Reason:
    return Reason(
        f"{tensor.name}: llama.cpp's {arch.name} has no place for a {tensor.part} of {tensor.role}"
    )


def _placed(
    tensor: SourceTensor, slot: Slot, sizes: Hyperparameters, role: str | None = None
) -> Placed:
    matrix = tensor.part == "weight" and len(tensor.shape) == 2
    return Placed(
        name=slot.name(tensor.block, tensor.part),
        shape=tensor.shape,
        category=CATEGORIES.get(role or tensor.role, "other") if matrix else "float",
        block=tensor.block,
        source=tensor,
        row_order=row_order(slot, tensor.shape[0], sizes),
        add=slot.add if tensor.part == "weight" else 0.0,
    )


def _generated(rope: Rope | None) -> Iterator[Placed]:
    """Tensors made of the configuration. llama.cpp looks for them outside the blocks."""
    for tensor, values in rope.factors if rope is not None else ():
        yield Placed(Slot(tensor).name(None, "weight"), values.shape, "float", None, values=values)


def _missing(names: set[str], tied: bool, arch: Architecture, blocks: int) -> Iterable[Reason]:
    optional = {"head"} if tied and not arch.head_required else set()
    for role, slot in arch.slots.items():
        parts = ("weight", "bias") if slot.bias == "required" else ("weight",)
        for part in parts if role not in optional else ():
            where: Sequence[int | None] = range(blocks) if slot.in_block else (None,)
            absent = [name for b in where if (name := slot.name(b, part)) not in names]
            if absent:
                more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
                yield Reason(f"llama.cpp's {arch.name} needs {absent[0]}{more}: no {role} {part}")


def row_order(slot: Slot, rows: int, sizes: Hyperparameters) -> NDArray[np.intp] | None:
    """Output row r is source row order[r]; None where the rows stay as they are.

    "rope_q", "rope_k": the two halves of a head interleaved, since llama.cpp rotates neighbours
    where transformers rotates halves. "qkv_by_head": GPT-NeoX stores q, k, v head by head,
    llama.cpp wants all of q, then k, then v.
    """
    if slot.order == "plain":
        return None
    index = np.arange(rows, dtype=np.intp)
    if slot.order == "qkv_by_head":
        return index.reshape(sizes.heads, 3, -1).swapaxes(0, 1).reshape(-1)
    heads = sizes.heads if slot.order == "rope_q" else sizes.kv_heads
    return index.reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)
