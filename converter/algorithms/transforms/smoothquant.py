"""Outliers of activations moved into weights, for activations of 8 bits.

Xiao et al. 2022, "SmoothQuant", equation 4: s_j = max|x_j|^alpha / max|w_j|^(1 - alpha), the inputs
divided and the columns multiplied by s, for linears behind a norm, and for those whose input the
output itself holds a scale of. max|w_j| is over all linears
that read the input. No search: alpha says how much of the difficulty moves; 0.5 shares it evenly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qconvert.algorithms.folding import Pair, fold, pairs
from qconvert.algorithms.slots import Setting
from qconvert.engine.block import Block
from qconvert.engine.moments import Change, Moments, Observed
from qconvert.formats.grid import Grid
from qconvert.formats.refusal import Reason
from qconvert.formats.source import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class SmoothQuant:
    """`algorithms.slots.Transform`."""

    name: str = "smoothquant"
    summary: str = "outliers of activations moved into weights (Xiao et al. 2022)"
    alpha: float = 0.5  # 0: all stays in the activations; 1: all moves to the weights

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
            free = pair.is_norm or pair.held is not None
            if free and name in inputs and any(role in grids for role in pair.readers):
                scale = self.scale(block, pair, inputs[name].fit)
                block, changes[name] = fold(block, pair, scale)
        return block, changes

    def scale(self, block: Block, pair: Pair, moments: Moments) -> NDArray[np.float64]:
        """The scale of each channel; 1 where the channel or its weights are always zero."""
        x = pair.largest(moments.largest.cpu().numpy())
        columns = [block.weight(role).abs().amax(0).cpu().numpy() for role in pair.readers]
        w = pair.largest(np.max(columns, axis=0))
        known = (x > 0) & (w > 0)
        x, w = np.where(known, x, 1.0), np.where(known, w, 1.0)
        found: NDArray[np.float64] = x**self.alpha / w ** (1 - self.alpha)
        return found


TRANSFORM = SmoothQuant()
