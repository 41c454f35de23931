"""What stands before and after the blocks: kept as it is, or on its grids, some rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

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

Maker = Callable[[], Iterator[QuantizedTensor]]
"""Makes the codes of all rows of one tensor, in their order."""


def write_outer(
    work: Work,
    part: Outer,
    source: Source,
    plan: Plan,
    threads: int,
    makers: Mapping[str, Maker],
    told: Callable[[], None],
    *,
    unchanged: bool,
) -> None:
    """Finish a part. `makers`, by the name of the output, make its codes; where there is none, they
    are fitted without data. `told` is called when all are made, before the part counts as finished.
    `unchanged`: `source` gives the values of the checkpoint, without a global transform."""
    with work.outer(part, unchanged=unchanged) as out:
        for tensor in work.journal.part(part):
            for rows in _rows(source, plan, tensor, threads, makers):
                out.write(tensor.name, rows)
        told()


def _rows(
    source: Source, plan: Plan, tensor: SourceTensor, threads: int, makers: Mapping[str, Maker]
) -> Iterator[QuantizedTensor | NDArray[np.float32]]:
    """All that is to be stored of a tensor: its rows on each grid, then as floats."""
    spans = [(0, 1)]
    if len(tensor.shape) > 1:
        count, step = tensor.shape[0], chunk_rows(tensor.shape[1])
        spans = [(start, min(start + step, count)) for start in range(0, count, step)]
    for output in _forms(plan, tensor):
        if output is None:
            yield from (source.rows(tensor, *span) for span in spans)
        elif output.name in makers:
            yield from makers[output.name]()
        else:
            yield from Fitted(source)(output, spans, threads)


def _forms(plan: Plan, tensor: SourceTensor) -> Iterator[OutputTensor | None]:
    """What is to be stored of a tensor: on each grid once, or its floats (None)."""
    outputs = [one for one in plan.tensors if one.source and one.source.name == tensor.name]
    grids: dict[str, OutputTensor] = {}
    for one in outputs:
        if one.grid is not None:
            grids.setdefault(one.grid.name, one)
    yield from grids.values()
    if not grids or any(one.grid is None for one in outputs):
        yield None
