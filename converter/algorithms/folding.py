"""Where a scale of each channel can hide: what was multiplied by s in the linears that read an
input is divided out of what produced that input, and the float function stays the same.

Four inputs of a block qualify (`FOLDS`, by roles). A norm multiplies each channel by its own gain.
Values pass through attention as a weighted mean, so a scale of v reaches attn_o; where several
query heads share the values of a key-value head, they share its scales. `up` is multiplied by
act(gate); without a gate, an activation lies between, which a scale does not pass.

Where the output holds a scale of each column (`Block.columns`), what no norm makes goes there: then
every column is free, whoever shares values, and what produces the input stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from qconvert.engine.block import READS, Block, Key
from qconvert.engine.moments import Change
from qconvert.formats.source import Source
from qconvert.models import FAMILIES, dimensions

Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the rows of joined linears follow from."""

    q: int  # rows of q: heads * head
    kv: int  # rows of k, and of v
    head: int
    ffn: int
    by_head: bool  # attn_qkv holds q, k, v of one head after the other


def sizes_of(source: Source) -> Sizes:
    found = dimensions(source.config)
    by_head = FAMILIES[source.model_type].qkv_by_head
    return Sizes(found["q"], found["kv"], found["head"], found["ffn"], by_head)


def joined_value_rows(sizes: Sizes) -> Indices:
    """The rows of attn_qkv that make v, in the order of the key-value heads, [kv]."""
    if not sizes.by_head:
        return np.arange(sizes.q + sizes.kv, sizes.q + 2 * sizes.kv)
    first = np.arange(sizes.kv // sizes.head) * 3 * sizes.head + 2 * sizes.head
    rows: Indices = (first[:, None] + np.arange(sizes.head)).reshape(-1)
    return rows


def shared_values(sizes: Sizes) -> Indices:
    """For each column of attn_o, the row of v that it reads, [q]."""
    by_head = np.arange(sizes.kv).reshape(-1, sizes.head)
    return np.repeat(by_head, sizes.q // sizes.kv, axis=0).reshape(-1)


@dataclass(frozen=True, slots=True)
class Fold:
    """One way to hide a scale, for blocks that have the roles `producer` and `needs`."""

    input: str  # one of the values of READS
    producer: str  # a norm, or a linear
    needs: str  # what makes it legal besides
    rows: Callable[[Sizes], Indices] | None = None  # of the producer; None: all of them
    owner: Callable[[Sizes], Indices] | None = None  # column of the input -> row; None: the same


FOLDS = (
    Fold("attn_in", "attn_norm", needs="attn_norm"),
    Fold("attn_mid", "attn_v", needs="attn_o", owner=shared_values),
    Fold("attn_mid", "attn_qkv", needs="attn_o", rows=joined_value_rows, owner=shared_values),
    Fold("ffn_in", "ffn_norm", needs="ffn_norm"),
    Fold("ffn_mid", "ffn_up", needs="ffn_gate"),
    Fold("ffn_mid", "ffn_gate_up", needs="ffn_down", rows=lambda s: np.arange(s.ffn, 2 * s.ffn)),
)  # fmt: skip
"""In the order of computation. Scales of rows leave a group's own scale to absorb them, so that the
pairs of a block can be searched one after the other."""


HELD_BITS = 8
"""Significant bits of a scale that is held: exact in bfloat16 and in float16."""
HELD_MOST = 2.0**14
"""Of a scale that is held, and of its inverse: float16 has all its bits there."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One fold in one block: `channels` scales, each free to be any number but zero."""

    input: str
    producer: str  # "": the output holds the scales, in `held`
    readers: tuple[str, ...]  # every linear that reads the input
    channels: int
    rows: Indices  # of the producer, [channels]
    owner: Indices  # [cols of the input], values below `channels`
    offset: float  # the producer is a norm and multiplies by its weight plus this
    is_norm: bool
    held: NDArray[np.float32] | None = None  # [cols], what the output holds so far

    def __str__(self) -> str:
        return f"{self.producer or 'columns'} -> {', '.join(self.readers)}"

    def per_column(self, scale: NDArray[np.floating]) -> NDArray[np.float32]:
        """A scale of each channel [channels], as a scale of each column of the input; as near to it
        as what is held then can be."""
        if self.held is None:
            return np.asarray(scale, np.float32)[self.owner]
        return self.held / self.then_held(scale)

    def then_held(self, scale: NDArray[np.floating]) -> NDArray[np.float32]:
        """What the output holds, [cols], once the input is divided by `scale` besides."""
        assert self.held is not None
        return exact(self.held / np.asarray(scale, np.float64))

    def largest(self, columns: NDArray[np.floating]) -> NDArray[np.float64]:
        """The largest of the columns that share a channel, [channels]. Values are not negative."""
        found = np.zeros(self.channels)
        np.maximum.at(found, self.owner, columns.astype(np.float64))
        return found

    def mean(self, columns: NDArray[np.floating]) -> NDArray[np.float64]:
        """The mean over the columns that share a channel, [channels]."""
        total = np.bincount(self.owner, columns.astype(np.float64), self.channels)
        return total / np.bincount(self.owner, minlength=self.channels)


def exact(scale: NDArray[np.floating]) -> NDArray[np.float32]:
    """The nearest scales that an output can hold, of such above zero: of HELD_BITS bits."""
    mantissa, exponent = np.frexp(np.clip(scale, 1 / HELD_MOST, HELD_MOST))
    whole = np.round(np.ldexp(mantissa, HELD_BITS))
    return np.asarray(np.ldexp(whole, exponent - HELD_BITS), np.float32)


def pairs(source: Source, block: Block) -> dict[str, Pair]:
    """By input name, in the order of computation: what can be folded in `block`."""
    found = {}
    for fold in FOLDS:
        readers = block.readers(fold.input)
        if block.has(fold.producer) and block.has(fold.needs) and readers:
            found[fold.input] = _pair(fold, sizes_of(source), source, block, readers)
    for name in block.columns:
        if name not in found or not found[name].is_norm:
            found[name] = _held_pair(name, block)
    return {name: found[name] for name in block.inputs if name in found}


def _held_pair(name: str, block: Block) -> Pair:
    every = np.arange(block.inputs[name])
    so_far = block.columns[name].cpu().numpy()
    return Pair(name, "", block.readers(name), len(every), every[:0], every, 0.0, False, so_far)


def _pair(fold: Fold, sizes: Sizes, source: Source, block: Block, readers: tuple[str, ...]) -> Pair:
    rows = np.arange(len(block.weight(fold.producer))) if fold.rows is None else fold.rows(sizes)
    owner = np.arange(len(rows)) if fold.owner is None else fold.owner(sizes)
    is_norm = fold.producer not in READS
    offset = FAMILIES[source.model_type].norm_offset if is_norm else 0.0
    return Pair(fold.input, fold.producer, readers, len(rows), rows, owner, offset, is_norm)


def unfolded(source: Source, block: Block) -> tuple[str, ...]:
    """Names of the inputs of `block` through which nothing can be folded (an MLP without gate)."""
    known = pairs(source, block)
    names = dict.fromkeys(READS[role] for role in block.linears)
    return tuple(name for name in names if name not in known)


def can_shift(block: Block, pair: Pair) -> bool:
    """Whether an offset of the input has a place on both sides: biases that exist already."""
    biased = all(block.bias(role) is not None for role in (pair.producer, *pair.readers))
    return pair.is_norm and biased


def fold(
    block: Block,
    pair: Pair,
    scale: NDArray[np.floating],  # [channels], not zero
    shift: NDArray[np.floating] | None = None,  # [cols]; only where `can_shift`
) -> tuple[Block, Change]:
    """The block whose readers see (x - shift) / scale, with the same float function."""
    device = block.weight(pair.readers[0]).device
    divide = torch.from_numpy(np.asarray(scale, np.float32)).to(device)
    columns = torch.from_numpy(pair.per_column(scale)).to(device)
    moved = None
    if shift is not None:
        moved = torch.from_numpy(np.asarray(shift, np.float32)).to(device)
    new: dict[Key, torch.Tensor] = {}
    for role in pair.readers:
        weight = block.weight(role)
        new[role, "weight"] = weight * columns
        if moved is not None:
            bias = block.tensors[role, "bias"]
            added = (weight.double() * moved).sum(1)  # as a product, its bits depend on threads
            new[role, "bias"] = (bias.double() + added).float()
    if pair.held is not None:
        then = torch.from_numpy(pair.then_held(scale)).to(device)
        return block.changed(new, {pair.input: then}), Change(columns)
    new.update(_divided(block, pair, divide, moved))
    return block.changed(new), Change(columns, moved)


def _divided(
    block: Block, pair: Pair, divide: torch.Tensor, shift: torch.Tensor | None
) -> Mapping[Key, torch.Tensor]:
    """The tensors of the producer, so that it makes (x - shift) / divide."""
    weight, bias = block.weight(pair.producer), block.bias(pair.producer)
    rows = torch.from_numpy(pair.rows).to(weight.device)
    by = divide if weight.dim() == 1 else divide[:, None]
    changed = weight.clone()
    changed[rows] = (weight[rows] + pair.offset) / by - pair.offset
    new: dict[Key, torch.Tensor] = {(pair.producer, "weight"): changed}
    if bias is not None:
        moved = bias.clone()
        moved[rows] = (bias[rows] if shift is None else bias[rows] - shift) / divide
        new[pair.producer, "bias"] = moved
    return new
