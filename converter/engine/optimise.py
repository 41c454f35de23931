"""One block onto its grids: observed, transformed, fitted and rounded, and what is stored of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from qconvert.algorithms.registry import transforms
from qconvert.algorithms.slots import Setting
from qconvert.engine.block import READS, Block, Key
from qconvert.engine.bound import bound
from qconvert.engine.observe import Sight, held_rows, input_records, observe
from qconvert.engine.parts import Stored
from qconvert.engine.pieces import after, pieces
from qconvert.engine.planned import (
    columns_of,
    fixed_of,
    grids_of,
    roundings_of,
    shares_of,
    weight_of,
)
from qconvert.engine.reach import MAX, reached
from qconvert.engine.record import BlockRecord
from qconvert.engine.rounding import Inputs, inputs_of
from qconvert.engine.rows import scratch
from qconvert.engine.solve import Solved, solve
from qconvert.engine.stream import Stream
from qconvert.engine.together import together
from qconvert.engine.work import Work
from qconvert.formats.grid import Grid
from qconvert.formats.source import Source
from qconvert.formats.target import InputRounding, Plan
from qconvert.importance import importance
from qconvert.recipe import Recipe

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Optimiser:
    """Makes the codes of one block of `source` after the other; keeps nothing between them."""

    source: Source
    plan: Plan
    recipe: Recipe
    setting: Setting
    device: torch.device
    work: Work
    scales: str = MAX  # how fixed scales of activations are chosen
    waiting: torch.device | None = None  # where moments and solved weights wait; None: `device`

    def __call__(
        self, block: Block, rows: torch.Tensor, stream: Stream, tell: Tell
    ) -> tuple[Block, Stored, BlockRecord]:
        """The block as the file stands for it, as it is stored, and what there is to tell of it so
        far. `block`: in float, `placed`; `rows`: what enters it."""
        index = block.index
        grids = grids_of(self.plan, index)
        fixed = {} if self.scales == MAX else fixed_of(self.plan, index)
        tell("calibrating")
        sight = observe(
            stream, block, rows, held_rows(len(rows)), mixed=self.recipe.mixed, sampled=fixed
        )
        records = input_records(sight.inputs, channels=index == 0)
        block, sight = self._transformed(block, sight, grids)
        grids = bound(block, grids, shares_of(self.plan, self.source, index))
        covered, chosen = self._covered(index, sight, fixed)
        sight = sight.waiting(self.waiting or self.device)
        tell("optimising")
        solved = list(self._solved(block, sight, grids))
        inputs = self.inputs(index, covered)
        solved = self._together(block, sight, rows, stream, solved, grids, inputs, tell)
        finished = block.changed({(one.role, "weight"): one.values for one in solved})
        told = tuple(one.record for one in solved)
        record = BlockRecord(index, told, records, 0.0, 0, largest=chosen, covered=covered)
        return finished, self._stored(finished, solved), record

    def placed(self, block: Block) -> Block:
        """With columns of ones where the output has a place for them."""
        inputs, names = block.inputs, columns_of(self.plan, self.source, block.index)
        ones = {name: torch.ones(inputs[name], device=self.device) for name in names}
        return Block(block.index, block.tensors, ones)

    def inputs(self, index: int, covered: Mapping[str, float]) -> Inputs:
        """How what the linears of a block read is rounded, as rows are passed on."""
        return inputs_of(roundings_of(self.plan, index), covered)

    def finished(self, block: Block) -> Block:
        """The block, `placed`, as an earlier run has left it."""
        stored = self.work.read_block(block.index)
        changed: dict[Key, torch.Tensor] = {}
        columns: dict[str, torch.Tensor] = {}
        for tensor in self.source.tensors:
            if tensor.block != block.index:
                continue
            if tensor.name in stored.quantized:
                codes = stored.quantized[tensor.name]
                values = self.work.grids[codes.grid].decode(codes)
            else:
                values = stored.floats[tensor.name]
            changed[tensor.role, tensor.part] = torch.from_numpy(values).to(self.device)
            if tensor.name in stored.columns:
                scale = torch.from_numpy(stored.columns[tensor.name])
                columns[READS[tensor.role]] = scale.to(self.device)
        return block.changed(changed, columns)

    def _covered(
        self, index: int, sight: Sight, fixed: Mapping[str, Sequence[InputRounding]]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """What the scales of all inputs reach to as rows are passed on, and those that the file is
        to hold as they are: by the rule MAX, it holds what is seen as rows are passed on."""
        if not roundings_of(self.plan, index):
            return {}, {}
        largest = {
            name: max(float(side.largest.max()) for side in (seen.fit, seen.held))
            for name, seen in sight.inputs.items()
        }
        chosen = reached(self.scales, fixed, sight.samples, largest)
        return {**largest, **chosen}, chosen

    def _transformed(
        self, block: Block, sight: Sight, grids: Mapping[str, Grid]
    ) -> tuple[Block, Sight]:
        known = transforms()
        for name in self.recipe.transforms:
            block, changes = known[name].block(
                self.source, block, sight.inputs, grids, self.setting
            )
            sight = after(sight, changes)
        return block, sight

    def _solved(self, block: Block, sight: Sight, grids: Mapping[str, Grid]) -> Iterator[Solved]:
        for role in block.linears:
            if role in grids:
                tensor, w = weight_of(self.source, block.index, role), block.weight(role)
                cut = pieces(self.source, block, role, sight, grids[role].together)
                known = None if self.recipe.calibrated else importance(self.source, tensor)
                task = (tensor.name, role, w, cut, grids[role], self.recipe, self.setting, known)
                done = solve(*task)
                yield replace(done, values=done.values.to(self.waiting or self.device))

    def _together(
        self,
        block: Block,
        sight: Sight,
        rows: torch.Tensor,
        stream: Stream,
        solved: list[Solved],
        grids: Mapping[str, Grid],
        inputs: Inputs,
        tell: Tell,
    ) -> list[Solved]:
        """The rounds of the recipe that look at the whole block."""
        if not self.recipe.block_rounds or not solved:
            return solved
        path = self.work.rows(block.index, "float")
        cut = {
            one.role: pieces(self.source, block, one.role, sight, grids[one.role].together)
            for one in solved
        }
        with scratch(path, (rows.shape[0], rows.shape[1], rows.shape[2])) as wanted:
            for name in self.recipe.block_rounds:
                tell(name)
                solved = together(
                    name, block, grids, cut, solved, stream, rows, wanted, self.setting, inputs
                )
        return solved

    def _stored(self, block: Block, solved: list[Solved]) -> Stored:
        quantized = {one.record.name: one.tensor for one in solved}
        floats = {
            tensor.name: block.tensors[tensor.role, tensor.part].cpu().numpy()
            for tensor in self.source.tensors
            if tensor.block == block.index and tensor.name not in quantized
        }
        columns = {
            one.record.name: block.columns[READS[one.role]].cpu().numpy()
            for one in solved
            if READS[one.role] in block.columns
            and bool((block.columns[READS[one.role]] != 1).any())
        }
        return Stored(quantized, floats, columns)
