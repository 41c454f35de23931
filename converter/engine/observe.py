"""What reaches the linears of a block: moments of its inputs on rows to fit to and on held rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from qconvert.engine.block import Block
from qconvert.engine.moments import Moments, Observed
from qconvert.engine.record import InputRecord
from qconvert.engine.stream import Stream
from qconvert.engine.sums import Sums, add_products, whole

HELD = 8
"""Every eighth row is held out."""


def held_rows(count: int) -> frozenset[int]:
    """Rows that nothing is fitted to; at least one of two. A single row serves both ends."""
    return frozenset(range(HELD - 1, count, HELD)) or frozenset({count - 1})


@dataclass(frozen=True, slots=True)
class Sight:
    """All that is seen of a block."""

    inputs: Mapping[str, Observed]  # by the names of `READS`
    mixed: Sequence[Pair]  # of each group of key heads: second moments of what attention makes of
    # the input of v, which no transform knows of


@dataclass(frozen=True, slots=True)
class Pair:
    """Second moments [cols, cols] on rows to fit to, and on held rows."""

    fit: torch.Tensor
    held: torch.Tensor


def observe(
    stream: Stream, block: Block, rows: torch.Tensor, held: frozenset[int], mixes: int
) -> Sight:
    """`mixes`: in how many groups key heads are seen apart. `Refused`, naming block and input,
    where a value is not finite."""
    chosen = sorted(set(range(len(rows))) - held) or sorted(held)
    fit, fit_mixed = _side(stream, block, rows[chosen], mixes)
    out, out_mixed = _side(stream, block, rows[sorted(held)], mixes)
    pairs = [Pair(one, other) for one, other in zip(fit_mixed, out_mixed, strict=True)]
    return Sight({name: Observed(fit[name], out[name]) for name in fit}, pairs)


def _side(
    stream: Stream, block: Block, rows: torch.Tensor, mixes: int
) -> tuple[dict[str, Moments], list[torch.Tensor]]:
    device, pool = stream.skeleton.device, stream.pool
    sums = {name: Sums(cols, device) for name, cols in block.inputs.items()}
    cols = block.inputs.get("attn_in", 0)
    mixed = [torch.zeros(cols, cols, device=device) for _ in range(mixes)]
    for wave in stream.captured(block, rows, list(sums), mixes):
        for name, x in wave.inputs.items():
            sums[name].add(x, pool)
        for second, product in zip(mixed, wave.mixed, strict=True):
            add_products(second, wave.inputs["attn_in"], product, pool)
    moments = {n: one.moments(f"block {block.index}, {n}") for n, one in sums.items()}
    tokens = rows.shape[0] * rows.shape[1]
    return moments, [whole(second) / tokens for second in mixed]


def input_records(inputs: Mapping[str, Observed], *, channels: bool) -> tuple[InputRecord, ...]:
    """How hard each input is to quantize for; `channels`: also the largest of each channel."""
    found = []
    for name, seen in inputs.items():
        one = seen.fit
        power = float(one.second.diagonal().double().mean())
        fourth = float(one.fourth.double().mean())
        found.append(
            InputRecord(
                name,
                len(one.mean),
                int((one.largest == 0).sum()),
                float(one.largest.max()) / power**0.5 if power > 0 else 0.0,
                fourth / power**2 if power > 0 else 0.0,
                tuple(one.largest.tolist()) if channels else (),
            )
        )
    return tuple(found)
