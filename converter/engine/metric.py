"""What errors of the ends of a model are measured by: second moments of what a head reads, and for
an embedding, which reads nothing, how its rows show in the linears that read the stream first.

An error d of a row shows in a linear W behind a norm with gains g as W (g d), up to the length of
the row that the norm takes off. So lookups are measured by the sum of g W'W g over the linears of
the first block, whatever the text: d M d'. Own work; on SmolLM2-135M's wide twin it takes 56 % off
the KL of a 4-bit embedding, and on the tied model, as a share beside the head's moments, 36 % off
the KL on text of a kind that was not calibrated on (docs/calibration.md).
"""

from __future__ import annotations

import torch

from qconvert.engine.block import Block
from qconvert.engine.observe import Pair
from qconvert.engine.reading import read_block
from qconvert.formats.source import Source
from qconvert.models import FAMILIES

READ_FIRST = {"attn_in": "attn_norm", "ffn_in": "ffn_norm"}
"""Inputs of the first block that are the stream behind a norm, and the norms."""
PLAIN = 0.1
"""Share of the identity in the metric of lookups: later blocks read the stream in other ways."""
LOOKUP = 0.3
"""Share of lookups in the metric of a tied matrix, beside 1 for the head."""


def lookup(source: Source, device: torch.device) -> torch.Tensor:
    """The metric of the embedding's rows, [hidden, hidden], a mean of 1 + PLAIN on its diagonal."""
    block = read_block(source, 0, device)
    offset = FAMILIES[source.model_type].norm_offset
    width = next(one.shape[1] for one in source.tensors if one.role == "embedding")
    total = torch.zeros(width, width, device=device)
    for name, norm in READ_FIRST.items():
        for role in block.readers(name):
            w = block.weight(role)
            total += _behind(block, norm, offset, w.t() @ w)
    return _level(total) + PLAIN * torch.eye(width, device=device)


def _behind(block: Block, norm: str, offset: float, second: torch.Tensor) -> torch.Tensor:
    """The form that `second` is before the norm: its gains, and the mean that LayerNorm takes off.
    Where a block has one norm for both of its halves, that."""
    norm = norm if block.has(norm) else "attn_norm"
    if not block.has(norm):
        return second
    gains = block.weight(norm) + offset
    second = gains[:, None] * second * gains[None, :]
    if block.bias(norm) is None:
        return second
    second = second - second.mean(0, keepdim=True)
    return second - second.mean(1, keepdim=True)


def both(head: Pair, seen: torch.Tensor) -> Pair:
    """The metric of a matrix that is head and embedding: `head` from moments, `seen` of lookups."""
    return Pair(*(_level(one) + LOOKUP * seen for one in (head.fit, head.held)))


def _level(second: torch.Tensor) -> torch.Tensor:
    """With a mean of 1 on the diagonal; all zero as it is."""
    mean = second.diagonal().mean()
    return second / mean if mean > 0 else second
