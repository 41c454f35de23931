"""What reaches the linears of a block: moments of its inputs on rows to fit to and on held rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from qconvert.engine.block import Block
from qconvert.engine.moments import Moments, Observed
from qconvert.engine.record import InputRecord
from qconvert.engine.sample import Sample, Tokens
from qconvert.engine.stream import Stream, rows_of_wave
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
    mixed: Pair | None  # of what attention makes of the input of v
    samples: Mapping[str, Tokens] = field(default_factory=dict)
    """Of the inputs that were asked for: some of the tokens to fit to."""

    def waiting(self, device: torch.device) -> Sight:
        """With all second moments on `device`."""
        inputs = {name: one.waiting(device) for name, one in self.inputs.items()}
        mixed = self.mixed and Pair(self.mixed.fit.to(device), self.mixed.held.to(device))
        return Sight(inputs, mixed, self.samples)


@dataclass(frozen=True, slots=True)
class Pair:
    """Second moments [cols, cols] on rows to fit to, and on held rows."""

    fit: torch.Tensor
    held: torch.Tensor


def observe(
    stream: Stream,
    block: Block,
    rows: torch.Tensor,
    held: frozenset[int],
    *,
    mixed: bool,
    sampled: Iterable[str] = (),
) -> Sight:
    """`mixed`: see also how attention mixes the input of v; `sampled`: inputs of which some tokens
    are kept as they are. `Refused`, naming block and input, where a value is not finite."""
    chosen = sorted(set(range(len(rows))) - held) or sorted(held)
    tokens = len(chosen) * rows.shape[1]
    samples = {name: Sample(tokens, block.inputs[name]) for name in sampled}
    fit, fit_mixed = _side(stream, block, rows, chosen, mixed, samples)
    out, out_mixed = _side(stream, block, rows, sorted(held), mixed, {})
    inputs = {name: Observed(fit[name], out[name]) for name in fit}
    kept = {name: one.tokens for name, one in samples.items()}
    return Sight(inputs, Pair(fit_mixed, out_mixed) if mixed else None, kept)


def _side(
    stream: Stream,
    block: Block,
    rows: torch.Tensor,
    chosen: Sequence[int],
    mixed: bool,
    samples: Mapping[str, Sample],
) -> tuple[dict[str, Moments], torch.Tensor]:
    device, pool = stream.skeleton.device, stream.pool
    narrow = stream.compute != torch.float32
    sums = {name: Sums(cols, device, narrow) for name, cols in block.inputs.items()}
    cols = block.inputs["attn_in"] if mixed else 0
    second = torch.zeros(cols, cols, device=device)
    for wave in stream.captured(block, rows, list(sums), chosen=chosen, mixed=mixed):
        for name, x in wave.inputs.items():
            sums[name].add(x, pool)
            if name in samples:
                samples[name].add(x)
        if wave.mixed is not None:
            add_products(second, wave.inputs["attn_in"], wave.mixed, pool)
    moments = {n: one.moments(f"block {block.index}, {n}") for n, one in sums.items()}
    tokens = len(chosen) * rows.shape[1]
    return moments, whole(second).div_(tokens)


def observe_end(stream: Stream, rows: torch.Tensor, held: frozenset[int]) -> Pair:
    """What a head reads of `rows`, which leave the last block: behind the final norm. `Refused`
    where a value is not finite."""
    fitted = sorted(set(range(len(rows))) - held) or sorted(held)
    with stream.skeleton.final_norm() as norm:
        return Pair(*(_end_side(stream, norm, rows, side) for side in (fitted, sorted(held))))


def _end_side(
    stream: Stream, norm: torch.nn.Module, rows: torch.Tensor, chosen: Sequence[int]
) -> torch.Tensor:
    device = stream.skeleton.device
    length, cols = rows.shape[1:]
    sums = Sums(cols, device, stream.compute != torch.float32)

    def behind(index: int) -> torch.Tensor:
        with torch.inference_mode():
            found: torch.Tensor = norm(rows[index].to(device))
            return found

    step = rows_of_wave(cols, length, device)
    for start in range(0, len(chosen), step):
        wave = stream.pool.map(behind, chosen[start : start + step])
        sums.add(torch.cat(wave), stream.pool)
    return sums.moments("the head's input").second


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
