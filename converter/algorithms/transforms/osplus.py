"""Outliers of activations centred, then scaled down, for activations of 8 bits.

Wei et al. 2023, "Outlier Suppression+": channels are shifted by z = (max + min) / 2, which takes
away what is asymmetric between them, then divided by s_j = max(1, max|x_j - z_j| / t): only what
exceeds a threshold t shrinks. t is searched by the error of the output with rounded weights and
rounded activations (per tensor, a static range, 8 bits).

The shift needs a bias in the norm and in each linear that reads it, so it is made in families with
LayerNorm and biases; elsewhere z = 0 and only the scale is searched (`notes` says so). The paper
rounds stored activations; here their rounding error is its model, uniform noise: variance step^2/12
in each channel, and at most the channel's own power, which is lost where it rounds to zero. So the
search sees all tokens, through their moments alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from qconvert.algorithms.folding import Pair, can_shift, fold, pairs
from qconvert.algorithms.slots import Setting
from qconvert.algorithms.trial import (
    ROWS,
    Columns,
    Linear,
    cheapest,
    linears,
    output_error,
    rounded,
)
from qconvert.engine.block import READS, Block
from qconvert.engine.moments import Change, Moments, Observed
from qconvert.formats.grid import Grid
from qconvert.formats.refusal import Reason
from qconvert.formats.source import Source

STEPS = 255  # of an activation of 8 bits, between its lowest and its highest value
THRESHOLDS = 40
DEEPEST = 1e-3  # the smallest threshold, of the largest magnitude


@dataclass(frozen=True, slots=True, kw_only=True)
class OsPlus:
    """`algorithms.slots.Transform`."""

    name: str = "osplus"
    summary: str = "outliers of activations shifted and scaled, searched (Wei et al. 2023)"

    def problems(self, source: Source) -> Sequence[Reason]:
        return ()

    def notes(self, source: Source) -> Sequence[str]:
        """What it leaves out on this model, one line each."""
        biased = {tensor.role for tensor in source.tensors if tensor.part == "bias"}
        found = {tensor.role for tensor in source.tensors}
        lacking = [
            f"osplus: {norm} has no bias here, or a linear behind it has none: scaled, not shifted"
            for norm, name in (("attn_norm", "attn_in"), ("ffn_norm", "ffn_in"))
            if not {norm, *(role for role in READS if READS[role] == name and role in found)}
            <= biased
        ]
        return tuple(lacking)

    def source(self, source: Source, setting: Setting) -> Source:
        return source

    def block(
        self,
        source: Source,
        block: Block,
        inputs: Mapping[str, Observed],
        grids: Mapping[str, Grid],
        setting: Setting,
    ) -> tuple[Block, Mapping[str, Change]]:
        """The keys of the changes name the pairs that were folded: see `folding.pairs`."""
        changes = {}
        for name, pair in pairs(source, block).items():
            if pair.is_norm and name in inputs and any(role in grids for role in pair.readers):
                scale, shift = _search(block, pair, inputs[name], grids, setting)
                if shift is not None or (scale != 1).any():
                    block, changes[name] = fold(block, pair, scale, shift)
        return block, changes


def _search(
    block: Block, pair: Pair, seen: Observed, grids: Mapping[str, Grid], setting: Setting
) -> tuple[Columns, Columns | None]:
    """(scale, shift); ones and None where nothing is gained on held-out rows."""
    shift = middle(seen.fit) if can_shift(block, pair) else None
    fit, held = (shifted(moments, shift) for moments in (seen.fit, seen.held))
    some = linears(block, pair.readers, grids, ROWS * max(setting.effort, 1))
    scales = candidates(fit.largest.cpu().numpy())
    best = cheapest(scales, lambda s, dtype: cost(some, s, fit, fit, setting.threads, dtype))
    whole = linears(block, pair.readers, grids)
    ones = np.ones_like(scales[best])
    plain = cost(whole, ones, shifted(seen.fit, None), seen.held, setting.threads, torch.float64)
    found = cost(whole, scales[best], fit, held, setting.threads, torch.float64)
    return (scales[best], shift) if found < plain else (ones, None)


def middle(moments: Moments) -> Columns:
    """z: halfway between the extremes of each channel, [cols]."""
    z: Columns = ((moments.highest.double() + moments.lowest.double()) / 2).float().cpu().numpy()
    return z


def shifted(moments: Moments, shift: Columns | None) -> Moments:
    """The statistics of x - shift."""
    if shift is None:
        return moments
    z = torch.from_numpy(shift).to(moments.mean.device)
    return moments.after(Change(torch.ones_like(z), z))


def candidates(largest: NDArray[np.floating]) -> list[Columns]:
    """max(1, largest / t), [cols], for thresholds t from the largest magnitude (no scale at all)
    down to that of the smallest channel, in even ratios."""
    magnitude = largest.astype(np.float64)
    top = float(magnitude.max())
    if top == 0:
        return [np.ones(len(magnitude), np.float32)]
    bottom = max(float(magnitude[magnitude > 0].min()), DEEPEST * top)
    thresholds = top * (bottom / top) ** (np.arange(THRESHOLDS) / (THRESHOLDS - 1))
    return [np.maximum(1, magnitude / t).astype(np.float32) for t in thresholds]


def cost(
    readers: Sequence[Linear],
    scale: Columns,
    known: Moments,
    judge: Moments,
    threads: int,
    dtype: torch.dtype,
) -> float:
    """Output error on `judge`, of rounded weights and of rounded activations whose range is what
    is `known`; infinite where the weights cannot be stored."""
    second = known.second.diagonal().cpu().numpy()
    noise = torch.from_numpy(activation_noise(scale, known, judge)).to(judge.second.device)
    total = 0.0
    for linear in readers:
        found = rounded(linear, scale, second, threads)
        if found is None:
            return np.inf
        total += output_error(linear, found, scale, judge.second, dtype)
        total += float((found.double().square().sum(0) * noise).sum()) / linear.share
    return total


def activation_noise(scale: Columns, known: Moments, judge: Moments) -> NDArray[np.float64]:
    """Mean square of the rounding error of x / scale in each channel, [cols]."""
    by = scale.astype(np.float64)
    high = max(0.0, float((known.highest.cpu().numpy() / by).max()))
    low = min(0.0, float((known.lowest.cpu().numpy() / by).min()))
    step = (high - low) / STEPS
    power = judge.second.diagonal().cpu().numpy() / np.square(by)
    noise: NDArray[np.float64] = np.minimum(step * step / 12, power)
    return noise


TRANSFORM = OsPlus()
