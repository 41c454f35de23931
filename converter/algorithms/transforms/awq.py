"""Activation-aware scales: channels that the inputs use much are rounded more finely.

A channel whose weights are multiplied by s before rounding, and whose input is divided by s, has
its rounding error divided by s, as long as the group's step does not grow by as much. Lin et al.
2023, "AWQ: Activation-aware Weight Quantization", equations 4 and 5: s = mean|x|^alpha, with alpha
searched by the error of the output. Here the error is exact for all calibration tokens (the paper
passes a batch through the layer), of all linears that read the input together, on the grid that
they will have. A second family of candidates divides by the magnitude of the weights, as the
authors' code did at first: s = mean|x|^alpha / mean|w|^(1 - alpha), where |w| is relative to the
largest of its group. A pair is left alone where the best scale does not help on held-out rows.
Where the output holds a scale of each column, every column of o and down is free (`folding`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from qconvert.algorithms.folding import Pair, fold, pairs
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
from qconvert.engine.block import Block
from qconvert.engine.moments import Change, Moments, Observed
from qconvert.formats.grid import Grid
from qconvert.formats.ragged import filled
from qconvert.formats.refusal import Reason
from qconvert.formats.source import Source

ALPHAS = tuple(step / 20 for step in range(21))
SMALLEST = 1e-4  # of a scale, before it is normalised


@dataclass(frozen=True, slots=True, kw_only=True)
class Awq:
    """`algorithms.slots.Transform`."""

    name: str = "awq"
    summary: str = "scales of input channels, searched by output error (Lin et al. 2023)"
    alphas: tuple[float, ...] = ALPHAS

    def problems(self, source: Source) -> Sequence[Reason]:
        return ()

    def notes(self, source: Source) -> Sequence[str]:
        return ()

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
            if name in inputs:
                scale = self._search(block, pair, inputs[name], grids, setting)
                if scale is not None:
                    block, changes[name] = fold(block, pair, scale)
        return block, changes

    def _search(
        self,
        block: Block,
        pair: Pair,
        seen: Observed,
        grids: Mapping[str, Grid],
        setting: Setting,
    ) -> NDArray[np.float64] | None:
        """The scale of each channel, or None where nothing is gained (or nothing is rounded)."""
        some = linears(block, pair.readers, grids, ROWS * max(setting.effort, 1))
        if not some:
            return None
        scales = candidates(pair, seen.fit, some, self.alphas)
        columns = [pair.per_column(scale) for scale in scales]
        best = cheapest(
            columns, lambda s, dtype: cost(some, s, seen.fit, seen.fit, setting.threads, dtype)
        )
        whole = linears(block, pair.readers, grids)
        plain, found = (
            cost(whole, s, seen.fit, seen.held, setting.threads, torch.float64)
            for s in (columns[0], columns[best])
        )
        return scales[best] if found < plain else None


def candidates(
    pair: Pair, moments: Moments, readers: Sequence[Linear], alphas: Sequence[float]
) -> list[NDArray[np.float64]]:
    """Scales [channels] to try, ones first."""
    x = pair.mean(moments.mean_abs.cpu().numpy())
    w = pair.mean(_weight_magnitude(readers))
    dead = x == 0  # nothing is known of it: neither its gain nor its weights should explode
    found = [np.ones(pair.channels)]
    for scale in [
        *(x**alpha for alpha in alphas if alpha > 0),
        *(x**alpha / (w ** (1 - alpha) + SMALLEST) for alpha in alphas if alpha < 1),
    ]:
        kept = np.maximum(scale, SMALLEST)
        kept = kept / np.sqrt(kept.max() * kept.min())
        found.append(np.where(dead, 1.0, kept))
    return found


def _weight_magnitude(readers: Sequence[Linear]) -> NDArray[np.float64]:
    """Mean over all rows of |w|, relative to the largest of its group, [cols]."""
    total, rows = np.zeros(readers[0].w.shape[1]), 0.0
    for linear in readers:
        w = linear.w.abs().cpu().numpy()
        groups = filled(w, linear.grid.group)
        groups = groups.reshape(len(w), -1, linear.grid.group or w.shape[1])
        largest = groups.max(2, keepdims=True)
        relative = groups / np.where(largest == 0, 1, largest)
        columns = relative.reshape(len(w), -1)[:, : w.shape[1]]
        total += columns.sum(0, dtype=np.float64) / linear.share
        rows += len(w) / linear.share
    return total / rows


def cost(
    readers: Sequence[Linear],
    scale: Columns,
    known: Moments,
    judge: Moments,
    threads: int,
    dtype: torch.dtype,
) -> float:
    """Output error on `judge` of linears rounded by what is `known`; infinite where it cannot be
    stored."""
    second = known.second.diagonal().cpu().numpy()
    total = 0.0
    for linear in readers:
        found = rounded(linear, scale, second, threads)
        if found is None:
            return np.inf
        total += output_error(linear, found, scale, judge.second, dtype)
    return total


TRANSFORM = Awq()
