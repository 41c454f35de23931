"""The loop: for each block, see what reaches its linears, quantize it, pass the rows through it.

    rows -> observe -> transform -> fit and round -> listen to the quantized block -> finished part
      ^                                                           |
      +----------------- what comes out of it --------------------+

A block that is finished is never computed again: after a crash, or when a damaged part was deleted,
rows are passed through the finished blocks until the first that is missing, and on from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from qconvert.algorithms.registry import transforms
from qconvert.algorithms.slots import Setting
from qconvert.engine.ahead import ahead
from qconvert.engine.block import Block, Key
from qconvert.engine.bound import bound
from qconvert.engine.ends import Ends
from qconvert.engine.heap import give_back
from qconvert.engine.observe import Pair, Sight, held_rows, input_records, observe, observe_end
from qconvert.engine.parts import Stored
from qconvert.engine.pieces import after, pieces
from qconvert.engine.planned import grids_of, roundings_of, shares_of, weight_of
from qconvert.engine.record import BlockRecord, LinearRecord
from qconvert.engine.rounding import Inputs, inputs_of
from qconvert.engine.rows import kept_rows, mapped_rows, scratch, written
from qconvert.engine.skeleton import read_block, skeleton
from qconvert.engine.solve import Solved, solve
from qconvert.engine.stream import Stream, Workers, workers
from qconvert.engine.together import together
from qconvert.engine.work import Work
from qconvert.formats.grid import Grid
from qconvert.formats.source import Source
from qconvert.formats.target import Plan
from qconvert.importance import importance
from qconvert.progress import BlockProgress
from qconvert.recipe import GLOBAL, Recipe
from qconvert.resources import peak_resident_bytes

Finish = Callable[[Mapping[str, float]], None]
"""Called with the largest magnitudes that `Stream.forward` found."""


@dataclass(frozen=True, slots=True)
class Engine:
    """One calibrated conversion of `source`, the model with its global transforms."""

    source: Source
    plan: Plan
    recipe: Recipe
    setting: Setting
    device: torch.device
    compute: torch.dtype
    tokens: NDArray[np.int32]  # [rows, length]
    work: Work
    told: BlockProgress

    @property
    def blocks(self) -> int:
        return 1 + max(t.block for t in self.source.tensors if t.block is not None)

    def run(self) -> tuple[tuple[BlockRecord, ...], int]:
        """Finish every part that is missing; the records of all blocks, and how many blocks were
        there already. `Refused`, naming them, when finished parts are damaged."""
        found = [which for which in self.work.finished() if isinstance(which, int)]
        missing = [index for index in range(self.blocks) if index not in found]
        self.told("starting", len(found), self.blocks, None)
        ends = self._ends()
        with workers(self.setting.threads, self.device) as pool:
            if "before" in ends.missing:
                self._before(ends, pool)
            behind = None
            head = "after" in ends.missing
            if missing or (head and ends.sees_behind):
                behind = self._run(missing, len(found), pool, ends, head=head and ends.sees_behind)
            if head:
                ends.after(behind)
        self.work.retire_rows(self.blocks + 1)
        return tuple(self.work.record(index) for index in range(self.blocks)), len(found)

    @property
    def outside(self) -> tuple[LinearRecord, ...]:
        """What there is to tell of the finished parts before and after the blocks."""
        return (*self.work.store.told("before"), *self.work.store.told("after"))

    def _ends(self) -> Ends:
        def tell(what: str) -> None:
            finished = sum(self.work.done(index) for index in range(self.blocks))
            self.told(what, finished, self.blocks, None)

        unchanged = not set(self.recipe.transforms) & set(GLOBAL)
        return Ends(
            self.source, self.plan, self.recipe, self.setting, self.device, self.work, tell,
            unchanged,
        )  # fmt: skip

    def _before(self, ends: Ends, pool: Workers) -> None:
        """Finish what stands before the blocks, and let go of the rows that went ahead for it."""
        seen = None
        if ends.sees_ahead:
            bones = skeleton(self.source, self.device)
            seen = ahead(bones, pool, self.compute, self.tokens, self.work, ends.tell)
        ends.before(seen)
        self.work.retire_rows(self.blocks + 1, "float")

    def _run(
        self, missing: list[int], done: int, pool: Workers, ends: Ends, *, head: bool
    ) -> Pair | None:
        """Finish the `missing` blocks. `head`: what leaves the last one is wanted as well, as the
        head reads it."""
        bones = skeleton(self.source, self.device)
        hidden, calls = bones.embed(self.tokens, ends.rows)
        stream = Stream(bones, calls, pool, self.compute)
        first, rows = self._latest(missing[0] if missing else self.blocks, hidden)
        del hidden
        for index in range(first, self.blocks if head else missing[-1] + 1):
            self.told(f"block {index}: reading", done, self.blocks, None)
            block = read_block(self.source, index, self.device)
            last = not head and index == missing[-1]
            if index in missing:
                rows = self._make(block, rows, stream, done, last=last)
                done += 1
            else:
                self.told(f"block {index}: passing on", done, self.blocks, None)
                inputs = self._inputs(index, self.work.record(index).covered)
                rows = self._pass_on(stream, self._finished(block), rows, inputs)
            give_back()
        if not head:
            return None
        self.told("head: reading", done, self.blocks, None)
        return observe_end(stream, rows, held_rows(len(rows)))

    def _latest(self, missing: int, hidden: torch.Tensor) -> tuple[int, torch.Tensor]:
        """The last block not after `missing` whose incoming rows are kept, and these rows."""
        shape = (*self.tokens.shape, hidden.shape[-1])
        for index in range(missing, 0, -1):
            path = self.work.rows(index, "quant")
            rows = kept_rows(path, shape, self.work.journal.digest)
            if rows is not None:
                return index, rows
        return 0, hidden

    def _pass_on(
        self,
        stream: Stream,
        block: Block,
        rows: torch.Tensor,
        inputs: Inputs,
        finish: Finish | None = None,
    ) -> torch.Tensor:
        """The rows that enter the next block, kept in a file; those before them are dropped.
        `finish` is called before they are: without them, the block need not be made again."""
        path = self.work.rows(block.index + 1, "quant")
        shape = (rows.shape[0], rows.shape[1], rows.shape[2])
        with written(path, shape, self.work.journal.digest) as out:
            largest = stream.forward(block, rows, out, inputs)
            if finish is not None:
                finish(largest)
        self.work.retire_rows(block.index + 1)
        return mapped_rows(path, shape)

    def _make(
        self, block: Block, rows: torch.Tensor, stream: Stream, done: int, *, last: bool
    ) -> torch.Tensor:
        """Finish a block; the rows that enter the next one, which the `last` has no use for."""
        begin = time.perf_counter()
        index = block.index
        quantized, stored, record = self._quantize(block, rows, stream, done)
        inputs = self._inputs(index, record.covered)
        del block
        self.told(f"block {index}: passing on", done, self.blocks, None)

        def finish(largest: Mapping[str, float]) -> None:
            seconds, peak = time.perf_counter() - begin, peak_resident_bytes()
            whole = replace(record, largest=largest, seconds=seconds, peak_bytes=peak)
            self.work.write_block(index, stored, whole)
            self.told(f"block {index}: done", done + 1, self.blocks, whole)

        if not last:
            return self._pass_on(stream, quantized, rows, inputs, finish)
        finish(stream.forward(quantized, rows, None, inputs))
        return rows

    def _finished(self, block: Block) -> Block:
        """The block as an earlier run has left it."""
        stored = self.work.read_block(block.index)
        changed: dict[Key, torch.Tensor] = {}
        for tensor in self.source.tensors:
            if tensor.block != block.index:
                continue
            if tensor.name in stored.quantized:
                codes = stored.quantized[tensor.name]
                values = self.work.grids[codes.grid].decode(codes)
            else:
                values = stored.floats[tensor.name]
            changed[tensor.role, tensor.part] = torch.from_numpy(values).to(self.device)
        return block.changed(changed)

    def _quantize(
        self, block: Block, rows: torch.Tensor, stream: Stream, done: int
    ) -> tuple[Block, Stored, BlockRecord]:
        """Optimise one block: as the file stands for it, as it is stored, and what there is to tell
        of it so far."""
        grids = grids_of(self.plan, block.index)
        self.told(f"block {block.index}: calibrating", done, self.blocks, None)
        mixed = self.recipe.mixed
        sight = observe(stream, block, rows, held_rows(len(rows)), mixed=mixed)
        records = input_records(sight.inputs, channels=block.index == 0)
        block, sight = self._transformed(block, sight, grids)
        grids = bound(block, grids, shares_of(self.plan, self.source, block.index))
        covered = _largest(sight) if roundings_of(self.plan, block.index) else {}
        self.told(f"block {block.index}: optimising", done, self.blocks, None)
        solved = list(self._solved(block, sight, grids))
        inputs = self._inputs(block.index, covered)
        solved = self._together(block, sight, rows, stream, solved, grids, inputs)
        finished = block.changed({(one.role, "weight"): one.values for one in solved})
        told = tuple(one.record for one in solved)
        record = BlockRecord(block.index, told, records, 0.0, 0, covered=covered)
        return finished, self._stored(finished, solved), record

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
                yield solve(*task)

    def _together(
        self,
        block: Block,
        sight: Sight,
        rows: torch.Tensor,
        stream: Stream,
        solved: list[Solved],
        grids: Mapping[str, Grid],
        inputs: Inputs,
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
                self.told(f"block {block.index}: {name}", 0, self.blocks, None)
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
        return Stored(quantized, floats)

    def _inputs(self, index: int, covered: Mapping[str, float]) -> Inputs:
        return inputs_of(roundings_of(self.plan, index), covered)


def _largest(sight: Sight) -> dict[str, float]:
    """Of each input, on all rows."""
    return {
        name: max(float(side.largest.max()) for side in (seen.fit, seen.held))
        for name, seen in sight.inputs.items()
    }
