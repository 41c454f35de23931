"""The loop: for each block, see what reaches its linears, quantize it, pass the rows through it.

    rows -> observe -> transform -> fit and round -> listen to the quantized block -> finished part
      ^                                                           |
      +----------------- what comes out of it --------------------+

A block that is finished is never computed again: after a crash, or when a damaged part was deleted,
rows are passed through the finished blocks until the first that is missing, and on from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from qconvert.algorithms.slots import Setting
from qconvert.engine.ahead import ahead
from qconvert.engine.block import Block
from qconvert.engine.ends import Ends
from qconvert.engine.heap import give_back
from qconvert.engine.observe import Pair, held_rows, observe_end
from qconvert.engine.optimise import Optimiser
from qconvert.engine.passing import Passing, passing_of
from qconvert.engine.reach import MAX
from qconvert.engine.reading import read_blocks
from qconvert.engine.record import BlockRecord, LinearRecord
from qconvert.engine.rounding import Inputs
from qconvert.engine.skeleton import skeleton
from qconvert.engine.stream import Stream, Workers, workers
from qconvert.engine.work import Work
from qconvert.formats.source import Source
from qconvert.formats.target import Plan
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
    scales: str = MAX  # how fixed scales of activations are chosen, by the names of `reach.RULES`
    waiting: torch.device | None = None  # where what is not at work waits; None: on the device

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

    @property
    def _optimiser(self) -> Optimiser:
        return Optimiser(
            self.source, self.plan, self.recipe, self.setting, self.device, self.work, self.scales,
            self.waiting,
        )  # fmt: skip

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
        passing = passing_of(self.work, (*self.tokens.shape, hidden.shape[-1]), self.device)
        first, rows = passing.entering(missing[0] if missing else self.blocks, hidden)
        del hidden
        optimiser = self._optimiser
        indices = range(first, self.blocks if head else missing[-1] + 1)
        blocks = read_blocks(self.source, indices, self.device)
        for index in indices:
            self.told(f"block {index}: reading", done, self.blocks, None)
            block = optimiser.placed(next(blocks))
            last = not head and index == missing[-1]
            if index in missing:
                rows = self._make(block, rows, stream, passing, done, last=last)
                done += 1
            else:
                self.told(f"block {index}: passing on", done, self.blocks, None)
                inputs = optimiser.inputs(index, self.work.record(index).covered)
                rows = self._pass_on(stream, passing, optimiser.finished(block), rows, inputs)
            give_back()
        if not head:
            return None
        self.told("head: reading", done, self.blocks, None)
        return observe_end(stream, rows, held_rows(len(rows)))

    def _pass_on(
        self,
        stream: Stream,
        passing: Passing,
        block: Block,
        rows: torch.Tensor,
        inputs: Inputs,
        finish: Finish | None = None,
    ) -> torch.Tensor:
        """The rows that enter the next block; those before them are dropped. `finish` is called
        before they are: without them, the block need not be made again."""
        with passing.behind(block.index, rows) as out:
            largest = stream.forward(block, rows, out, inputs)
            if finish is not None:
                finish(largest)
        return passing.left(block.index, rows)

    def _make(
        self,
        block: Block,
        rows: torch.Tensor,
        stream: Stream,
        passing: Passing,
        done: int,
        *,
        last: bool,
    ) -> torch.Tensor:
        """Finish a block; the rows that enter the next one, which the `last` has no use for."""
        begin = time.perf_counter()
        index = block.index
        optimiser = self._optimiser

        def tell(what: str) -> None:
            self.told(f"block {index}: {what}", done, self.blocks, None)

        quantized, stored, record = optimiser(block, rows, stream, tell)
        inputs = optimiser.inputs(index, record.covered)
        del block
        tell("passing on")

        def finish(largest: Mapping[str, float]) -> None:
            seconds, peak = time.perf_counter() - begin, peak_resident_bytes()
            told = {**largest, **record.largest}
            whole = replace(record, largest=told, seconds=seconds, peak_bytes=peak)
            self.work.write_block(index, stored, whole)
            self.told(f"block {index}: done", done + 1, self.blocks, whole)

        if not last:
            return self._pass_on(stream, passing, quantized, rows, inputs, finish)
        finish(stream.forward(quantized, rows, None, inputs))
        return rows
