"""Which rows of a linear are judged by which second moments.

All rows of a linear read the same input. Those of v are the exception where attention's mixing was
seen: the rows of a key head are judged by the inputs as the heads that read it mix them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from qconvert.algorithms.folding import joined_value_rows, sizes_of
from qconvert.engine.block import READS, Block
from qconvert.engine.moments import Change
from qconvert.engine.observe import Pair, Sight
from qconvert.formats.source import Source

UNMIXED = 0.1
"""Share of the plain moments beside the mixed ones, both at a mean of 1: attention shows few
distinct mixtures, and what it has not shown must not become free of cost."""
MOST_GROUPS = 4
"""Key heads are seen in at most so many groups: each costs a matrix of second moments."""


@dataclass(frozen=True, slots=True)
class Piece:
    rows: NDArray[np.intp]
    fit: torch.Tensor  # [cols, cols]
    held: torch.Tensor  # [cols, cols]


def groups_of(source: Source) -> int:
    """In how many groups the key heads of a model are seen: all, if there are few."""
    sizes = sizes_of(source)
    heads = sizes.kv // sizes.head
    return max(count for count in range(1, MOST_GROUPS + 1) if heads % count == 0)


def pieces(source: Source, block: Block, role: str, sight: Sight) -> list[Piece]:
    """All rows of the linear `role`, each once."""
    plain = sight.inputs[READS[role]]
    rows = np.arange(block.weight(role).shape[0])
    values = _value_rows(source, role) if sight.mixed else rows[:0]
    rest = np.setdiff1d(rows, values)
    found = [Piece(rest, plain.fit.second, plain.held.second)] if rest.size else []
    parts = np.split(values, len(sight.mixed)) if values.size else []
    for part, pair in zip(parts, sight.mixed, strict=False):
        fit = _blend(pair.fit, plain.fit.second)
        found.append(Piece(part, fit, _blend(pair.held, plain.held.second)))
    return found


def _value_rows(source: Source, role: str) -> NDArray[np.intp]:
    """Rows of `role` that make v, in the order of the key heads."""
    sizes = sizes_of(source)
    if role == "attn_v":
        return np.arange(sizes.kv)
    return joined_value_rows(sizes) if role == "attn_qkv" else np.arange(0)


def _blend(mixed: torch.Tensor, plain: torch.Tensor) -> torch.Tensor:
    parts = [(1 - UNMIXED, mixed), (UNMIXED, plain)]
    tiny = torch.finfo(torch.float32).tiny
    return sum(
        (share / one.diagonal().mean().clamp_min(tiny) * one for share, one in parts),
        start=torch.zeros_like(plain),
    )


def after(sight: Sight, changes: Mapping[str, Change]) -> Sight:
    """What is seen once a transform has changed some inputs. A shift is not followed through
    attention: the rows of v are then judged token by token."""
    inputs = {
        name: seen.after(changes[name]) if name in changes else seen
        for name, seen in sight.inputs.items()
    }
    change = changes.get("attn_in")
    if change is None:
        return Sight(inputs, sight.mixed)
    if change.shift is not None:
        return Sight(inputs, [])
    scale = 1 / change.divide
    outer = scale[:, None] * scale[None, :]
    mixed: Sequence[Pair] = [Pair(one.fit * outer, one.held * outer) for one in sight.mixed]
    return Sight(inputs, mixed)
