"""Which rows of a linear are judged by which second moments.

All rows of a linear read the same input. Those of v are the exception where attention's mixing was
seen: they are judged by the inputs as the heads mix them.
"""

from __future__ import annotations

from collections.abc import Mapping
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


@dataclass(frozen=True, slots=True)
class Piece:
    rows: NDArray[np.intp]
    fit: torch.Tensor  # [cols, cols]
    held: torch.Tensor  # [cols, cols]


def pieces(source: Source, block: Block, role: str, sight: Sight, together: int = 1) -> list[Piece]:
    """All rows of the linear `role`, each once. `together`: rows that share parameters, and are
    not parted: where v begins or ends among them, all rows are judged token by token."""
    plain, mixed = sight.inputs[READS[role]], sight.mixed
    rows = np.arange(block.weight(role).shape[0])
    values = rows[:0] if mixed is None else _value_rows(source, role)
    rest = np.setdiff1d(rows, values)
    if not (_whole(values, together, len(rows)) and _whole(rest, together, len(rows))):
        rest, values = rows, rows[:0]
    found = [Piece(rest, plain.fit.second, plain.held.second)] if rest.size else []
    if values.size and mixed is not None:
        fit = _blend(mixed.fit, plain.fit.second)
        found.append(Piece(values, fit, _blend(mixed.held, plain.held.second)))
    return found


def _whole(rows: NDArray[np.intp], together: int, count: int) -> bool:
    """Whether they are, in this order, whole groups of `together` neighbours of `count` rows."""
    groups = np.unique(rows // together)
    whole = (groups[:, None] * together + np.arange(together)).reshape(-1)
    return np.array_equal(rows, whole[whole < count])


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
    samples = {
        name: one.after(changes[name]) if name in changes else one
        for name, one in sight.samples.items()
    }
    change = changes.get("attn_in")
    if change is None or sight.mixed is None:
        return Sight(inputs, sight.mixed, samples)
    if change.shift is not None:
        return Sight(inputs, None, samples)
    scale = 1 / change.divide
    outer = scale[:, None] * scale[None, :]
    return Sight(inputs, Pair(sight.mixed.fit * outer, sight.mixed.held * outer), samples)
