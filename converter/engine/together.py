"""The linears of a block through a round that looks at the output of the whole block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from qconvert.algorithms.registry import block_rounds
from qconvert.algorithms.slots import BlockTask, Setting
from qconvert.engine.block import Block
from qconvert.engine.block_error import block_error
from qconvert.engine.observe import held_rows
from qconvert.engine.pieces import Piece
from qconvert.engine.rounding import Inputs
from qconvert.engine.solve import Solved, judged
from qconvert.engine.stream import Stream
from qconvert.formats.grid import Grid


def together(
    name: str,
    block: Block,  # in float
    grids: Mapping[str, Grid],
    pieces: Mapping[str, Sequence[Piece]],
    solved: Sequence[Solved],
    stream: Stream,
    rows: torch.Tensor,  # [rows, length, hidden], that enter the block
    wanted: torch.Tensor,  # to be filled: what the block in float makes of them
    setting: Setting,
    inputs: Inputs,
) -> list[Solved]:
    """`solved` with the codes that the block round `name` found; each is judged anew, by the error
    of its own output. That may have risen where it makes good the error of another linear."""
    start = {one.role: one.tensor for one in solved}
    held = held_rows(len(rows))
    with block_error(stream, block, list(start), rows, wanted, inputs) as error:
        task = BlockTask(
            f"block {block.index}",
            {role: block.weight(role) for role in start},
            {role: grids[role] for role in start},
            error,
            sorted(set(range(len(rows))) - held) or sorted(held),
            sorted(held),
            setting,
        )
        found = block_rounds()[name](task, start)
    return [
        one
        if np.array_equal(one.tensor.codes, found[one.role].codes)
        else judged(
            one,
            found[one.role],
            name,
            task.weights[one.role],
            pieces[one.role],
            grids[one.role],
            setting,
        )
        for one in solved
    ]
