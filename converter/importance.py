"""What the weights alone tell of the inputs of a linear: which columns matter, without any data.

A norm sends vectors of mean square 1 into the linears after it. If their channels were independent,
output i of a linear W behind a norm with weights g would have the second moment
`sum_j (W_ij g_j)^2`, plus the square of a bias. That is the input of two linears:

- `attn_o` reads values: rows of v, each used by the query heads of its group. Attention averages
  them over positions, which lowers all alike.
- `ffn_down` reads `act(gate) * up`: the product of the two moments.

The error of a quantized linear is the weight error times these moments, so they are the importance
that a fit is given. For q, k, v, gate and up the squares of the norm's own weights were tried, with
no clear gain. Own work; measured in docs/gguf.md.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from qconvert.estimate import chunk_rows
from qconvert.formats.source import Source, SourceTensor
from qconvert.models import FAMILIES, dimensions

Moments = NDArray[np.float32]


def importance(source: Source, tensor: SourceTensor) -> Moments | None:
    """Expected second moment of each input column of `tensor`, [cols], or None when all count
    alike. Reads the linears before it, a chunk of rows at a time."""
    if tensor.part != "weight" or tensor.block is None:
        return None
    mates: dict[tuple[str, str], SourceTensor] = {
        (t.role, t.part): t for t in source.tensors if t.block == tensor.block
    }
    if tensor.role == "attn_o" and ("attn_v", "weight") in mates:
        values = _moments(source, mates, "attn_v", "attn_norm")
        return _per_query_head(values, source)
    if tensor.role == "ffn_down" and ("ffn_gate", "weight") in mates:
        gate = _moments(source, mates, "ffn_gate", "ffn_norm")
        return np.multiply(gate, _moments(source, mates, "ffn_up", "ffn_norm"))
    return None


def _moments(
    source: Source,
    mates: Mapping[tuple[str, str], SourceTensor],
    role: str,
    norm_role: str,
) -> Moments:
    """Second moment of each output of a linear behind a norm, [out]."""
    linear, norm = mates[role, "weight"], mates[norm_role, "weight"]
    gains = source.rows(norm, 0, 1) + np.float32(FAMILIES[source.model_type].norm_offset)
    rows, step = linear.shape[0], chunk_rows(linear.shape[1])
    found = np.empty(rows, np.float32)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        found[start:stop] = np.square(source.rows(linear, start, stop) * gains).sum(1)
    bias = mates.get((role, "bias"))
    return found if bias is None else found + np.square(source.rows(bias, 0, 1))


def _per_query_head(values: Moments, source: Source) -> Moments:
    """Of each key-value head's channels, once for every query head that reads them."""
    sizes = dimensions(source.config)
    by_head = values.reshape(-1, sizes["head"])
    return np.repeat(by_head, sizes["q"] // sizes["kv"], axis=0).reshape(-1)
