"""What reaches the linears of a block: moments of its inputs on rows to fit to and on held rows."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from qconvert.engine.block import Block
from qconvert.engine.moments import Observed
from qconvert.engine.record import InputRecord
from qconvert.engine.stream import Stream
from qconvert.engine.sums import Sums

HELD = 8
"""Every eighth row is held out."""


def held_rows(count: int) -> frozenset[int]:
    """Rows that nothing is fitted to; at least one of two. A single row serves both ends."""
    return frozenset(range(HELD - 1, count, HELD)) or frozenset({count - 1})


def observe(
    stream: Stream, block: Block, rows: torch.Tensor, held: frozenset[int]
) -> Mapping[str, Observed]:
    """By the names of `READS`; `Refused`, naming block and input, where a value is not finite."""
    sides = []
    for chosen in (sorted(set(range(len(rows))) - held) or sorted(held), sorted(held)):
        sums = {name: Sums(cols, stream.skeleton.device) for name, cols in block.inputs.items()}
        for wave in stream.captured(block, rows[chosen], list(sums)):
            for name, x in wave.items():
                sums[name].add(x, stream.pool)
        sides.append({n: one.moments(f"block {block.index}, {n}") for n, one in sums.items()})
    fit, held_out = sides
    return {name: Observed(fit[name], held_out[name]) for name in fit}


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
