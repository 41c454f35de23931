"""The slots of a recipe, and what fills them. Each algorithm is a module of its own:
`transforms/NAME.py` has `TRANSFORM`, `fits/NAME.py` has `FIT`, `rounds/NAME.py` has `ROUND`, and
`blocks/NAME.py`, for rounds that look at a whole block, has `BLOCK`.

An algorithm knows a grid only by `formats.grid.Grid`: no format, no target, no number of bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from qconvert.engine.block import Block
from qconvert.engine.moments import Change, Observed
from qconvert.formats.grid import Grid
from qconvert.formats.refusal import Reason
from qconvert.formats.source import Source
from qconvert.formats.tensor import QuantizedTensor
from qconvert.kernels.bodies import Body


@dataclass(frozen=True, slots=True)
class Setting:
    """What an algorithm may depend on besides its data. Results never depend on `threads`."""

    seed: int = 0
    threads: int = 1
    effort: int = 1  # more: slower and better, where an algorithm has something to spend it on
    body: Body | None = None  # of the kernels; None: the one for the device of the tensors


class Transform(Protocol):
    """Changes weights so that the float function stays the same and rounding does less harm."""

    @property
    def name(self) -> str: ...
    @property
    def summary(self) -> str:
        """One line: what it does, and the paper."""
        ...

    def problems(self, source: Source) -> Sequence[Reason]:
        """Why it cannot be applied to this model; looked at before a weight is read."""
        ...

    def notes(self, source: Source) -> Sequence[str]:
        """What a user should know of its use on this model, one line each."""
        ...

    def source(self, source: Source, setting: Setting) -> Source:
        """The model with global changes made (rotations), read lazily; `source` itself if none."""
        ...

    def block(
        self,
        source: Source,
        block: Block,
        inputs: Mapping[str, Observed],
        grids: Mapping[str, Grid],
        setting: Setting,
    ) -> tuple[Block, Mapping[str, Change]]:
        """The block with changes that fold into neighbours, and what became of its inputs.

        `inputs` by the names of `engine.block.READS`; `grids` by role, without the linears that
        stay float. `source` gives facts (config, model_type), not weights.
        """
        ...


class Fit(Protocol):
    """Chooses the parameters of a grid (scales, offsets), and the nearest codes. One that has an
    attribute `searches`, true, is the grid's own `quantize`."""

    @property
    def name(self) -> str: ...
    @property
    def summary(self) -> str: ...
    def __call__(
        self,
        grid: Grid,
        w: NDArray[np.float32],  # [rows, cols], cols a multiple of grid.block
        weight: NDArray[np.float32] | None,  # [cols] importance, None: all alike
        threads: int,
    ) -> QuantizedTensor: ...


@dataclass(frozen=True, slots=True)
class Task:
    """One linear to be put onto a grid: minimise the mean of |(w - q) x|^2 over tokens x."""

    name: str  # of the tensor, for messages
    w: torch.Tensor  # [rows, cols] float32
    second: torch.Tensor  # [cols, cols] float32, mean of x x' over the tokens to fit to
    held: torch.Tensor  # the same over tokens that were held out; may wait on the processor
    grid: Grid
    setting: Setting


class Round(Protocol):
    """Chooses codes (and perhaps parameters) for the error of the output, not of the weight."""

    @property
    def name(self) -> str: ...
    @property
    def summary(self) -> str: ...
    def __call__(self, task: Task, fit: Fit, start: QuantizedTensor | None) -> QuantizedTensor:
        """`start` is what the round before it found; None for the first."""
        ...


class BlockError(Protocol):
    """How far a block with other weights is from the block in float, as its outputs show it."""

    def mean(self, weights: Mapping[str, torch.Tensor], rows: Sequence[int]) -> float:
        """Mean over the tokens of `rows` of |f(x) - q(x)|^2, both blocks on the same x, where the
        linears of q have `weights`, by role, [out, in]."""
        ...

    def slopes(
        self, weights: Mapping[str, torch.Tensor], rows: Sequence[int]
    ) -> Mapping[str, torch.Tensor]:
        """The gradient of `mean` by each weight, by role, float32 [out, in]."""
        ...


@dataclass(frozen=True, slots=True)
class BlockTask:
    """A block whose linears are on their grids: minimise the error of its output."""

    name: str  # for messages: "block 3"
    weights: Mapping[str, torch.Tensor]  # by role, [rows, cols] float32, what is to be met
    grids: Mapping[str, Grid]  # by role, of the same linears
    error: BlockError
    fit: Sequence[int]  # rows of tokens to fit to
    held: Sequence[int]  # rows that were held out
    setting: Setting


class BlockRound(Protocol):
    """Chooses the codes of all linears of a block together, for the error of the block's output."""

    @property
    def name(self) -> str: ...
    @property
    def summary(self) -> str: ...
    def __call__(
        self, task: BlockTask, start: Mapping[str, QuantizedTensor]
    ) -> Mapping[str, QuantizedTensor]:
        """`start`, by role: what the rounds before it found. Never worse on the held rows."""
        ...
