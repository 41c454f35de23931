"""What stands before and after the blocks: fitted without data, or kept as it is."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from qconvert.codes import Fitted
from qconvert.engine.store import Outer
from qconvert.engine.work import Work
from qconvert.estimate import chunk_rows
from qconvert.formats.source import Source, SourceTensor
from qconvert.formats.target import OutputTensor, Plan
from qconvert.formats.tensor import QuantizedTensor

PARTS: tuple[Outer, ...] = ("before", "after")


def write_outer(work: Work, source: Source, plan: Plan, threads: int, *, unchanged: bool) -> None:
    """Finish the parts outside the blocks that are missing, a chunk of rows at a time.

    `unchanged`: `source` gives the values of the checkpoint, without a global transform.
    """
    for part in PARTS:
        if work.valid(part):
            continue
        with work.outer(part, unchanged=unchanged) as out:
            for tensor in work.journal.part(part):
                for rows in _rows(source, plan, tensor, threads):
                    out.write(tensor.name, rows)


def _rows(
    source: Source, plan: Plan, tensor: SourceTensor, threads: int
) -> Iterator[QuantizedTensor | NDArray[np.float32]]:
    """All that is to be stored of a tensor: its rows on each grid, then as floats."""
    spans = [(0, 1)]
    if len(tensor.shape) > 1:
        count, step = tensor.shape[0], chunk_rows(tensor.shape[1])
        spans = [(start, min(start + step, count)) for start in range(0, count, step)]
    for output in _forms(plan, tensor):
        if output is not None:
            yield from Fitted(source)(output, spans, threads)
        else:
            yield from (source.rows(tensor, *span) for span in spans)


def _forms(plan: Plan, tensor: SourceTensor) -> Iterator[OutputTensor | None]:
    """What is to be stored of a tensor: on each grid once, or its floats (None)."""
    outputs = [one for one in plan.tensors if one.source and one.source.name == tensor.name]
    grids = {one.grid.name: one for one in outputs if one.grid is not None}
    yield from grids.values()
    if not grids or any(one.grid is None for one in outputs):
        yield None
