"""Where the codes of an output come from: fitted now without data, or made before and kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qconvert.engine.bundle import Bundle
from qconvert.estimate import chunk_rows
from qconvert.formats.grid import Grid, ScaleOverflow
from qconvert.formats.refusal import Reason, collecting, refuse
from qconvert.formats.source import Source, SourceTensor
from qconvert.formats.target import OutputTensor, Plan, Request, Target
from qconvert.formats.tensor import QuantizedTensor
from qconvert.importance import importance
from qconvert.models import pattern
from qconvert.recipe import USUAL_FIT

Span = tuple[int, int]  # rows [start, stop)

OF_WEIGHTS = ("bits", "type", "scheme", "group", "symmetric", "static", "layers")
"""Fields of a request that say what is stored of the weights; the others, how and for whom."""


class Codes(Protocol):
    def problems(self, plan: Plan) -> list[Reason]:
        """Why the plan's quantized tensors cannot be had; empty when they can."""
        ...

    def notes(self, plan: Plan) -> tuple[str, ...]:
        """What a user should know of where they come from, a line each."""
        ...

    def fitted(self, plan: Plan) -> list[OutputTensor]:
        """The plan's tensors whose codes are still to be made."""
        ...

    def __call__(
        self, tensor: OutputTensor, spans: Sequence[Span], threads: int
    ) -> Iterator[QuantizedTensor]:
        """The rows of each span on the tensor's grid, in the order of the source."""
        ...


@dataclass(frozen=True, slots=True)
class Fitted:
    """Each chunk of float rows is fitted as it is read, by the fit of this name. Where tensors
    share a scale, all of them are read once before the first is fitted."""

    source: Source
    fit: str = USUAL_FIT
    _largest: dict[tuple[str, ...], float] = field(default_factory=dict, repr=False, compare=False)

    def problems(self, plan: Plan) -> list[Reason]:
        return []

    def notes(self, plan: Plan) -> tuple[str, ...]:
        return ()

    def fitted(self, plan: Plan) -> list[OutputTensor]:
        return [one for one in plan.tensors if one.grid is not None]

    def __call__(
        self, tensor: OutputTensor, spans: Sequence[Span], threads: int
    ) -> Iterator[QuantizedTensor]:
        assert tensor.source is not None
        assert tensor.grid is not None
        weight = importance(self.source, tensor.source)
        tensor = replace(tensor, grid=self.bound(tensor, tensor.grid))
        for span in spans:
            yield _fitted(tensor, self.source, span, weight, threads, self.fit)

    def bound(self, tensor: OutputTensor, grid: Grid) -> Grid:
        """The grid with the scale that a whole tensor has, or several together."""
        make = getattr(grid, "bound", None)  # `formats.grid.Bindable`
        if make is None:
            return grid
        assert tensor.source is not None
        names = tensor.shares or (tensor.source.name,)
        if names not in self._largest:
            known = {one.name: one for one in self.source.tensors}
            self._largest[names] = max(_magnitude(self.source, known[name]) for name in names)
        found: Grid = make(self._largest[names])
        return found


@dataclass(frozen=True, slots=True)
class Kept:
    """The codes of a bundle as they are. What it keeps in float outside the blocks is fitted: no
    codes were made of it, and no block was calibrated behind it."""

    bundle: Bundle

    def usual(self, request: Request, target: Target) -> Request:
        """The request with the type that the bundle was made for, where nothing is asked about the
        weights, and the target knows that type."""
        own = target.name == self.bundle.target
        main = self.bundle.type.split(",")[0]  # what follows are exceptions for some layers
        known = own or main in (name for name, _ in target.types)
        if known and all(getattr(request, name) in (None, ()) for name in OF_WEIGHTS):
            return replace(request, type=self.bundle.type)
        return request

    def problems(self, plan: Plan) -> list[Reason]:
        """Every tensor that is wanted on a grid on which the bundle has no codes, like ones
        together."""
        found = Counter(
            (pattern(one.source.name), one.grid.name, self._has(one))
            for one in plan.tensors
            if one.source is not None and one.grid is not None
            if not self._has_codes(one) and not self._may_fit(one)
        )
        made_for = f"--to {self.bundle.target} --type {self.bundle.type}"
        own = f"--to {plan.target} --type {plan.type}"
        remedy = f"write {made_for}, for which it was made, or calibrate the model with {own}"
        reasons = [
            Reason(
                f"{name}{f' ({count} tensors)' if count > 1 else ''} is wanted on {grid}, "
                f"but the work folder has it {has}",
                remedy if place == len(found) else "",  # once, below all of them
            )
            for place, ((name, grid, has), count) in enumerate(found.items(), 1)
        ]
        reasons += self._scaled_problems(plan)
        for statistic in (one.statistic for one in plan.tensors):
            if statistic is not None and not reasons:  # one of them tells it all
                with collecting(reasons):
                    self.bundle.largest(statistic)
        return reasons

    def _scaled_problems(self, plan: Plan) -> Iterator[Reason]:
        """Codes are of columns that the output would have to scale, and does not."""
        places = {one.column_scale for one in plan.tensors}
        coded = {one.source.name for one in plan.tensors if one.source and one.grid}
        lost = [name for name in self.bundle.scaled if name in coded and name not in places]
        if lost:
            yield Reason(
                f"the work folder has scales of the columns of {len(lost)} tensors, such as "
                f"{lost[0]}: {plan.target} in {plan.type} has no place for them",
                f"write --to {self.bundle.target} --type {self.bundle.type}, for which it was made,"
                f" or calibrate the model with --to {plan.target} --type {plan.type}",
            )

    def notes(self, plan: Plan) -> tuple[str, ...]:
        floats = [
            t
            for t in plan.tensors
            if t.grid is None and t.source and self.bundle.grid_of(t.source.name)
        ]
        lines = {
            "kept in float by the work folder, fitted without data": len(self.fitted(plan)),
            "the values of the codes, written as floats": len(floats),
        }
        return tuple(f"{count} tensors: {line}" for line, count in lines.items() if count)

    def fitted(self, plan: Plan) -> list[OutputTensor]:
        return [t for t in plan.tensors if t.grid is not None and not self._has_codes(t)]

    def __call__(
        self, tensor: OutputTensor, spans: Sequence[Span], threads: int
    ) -> Iterator[QuantizedTensor]:
        assert tensor.source is not None
        assert tensor.grid is not None
        if not self._has_codes(tensor):
            yield from Fitted(self.bundle)(tensor, spans, threads)
            return
        for span in spans:
            found = self.bundle.quantized(tensor.source.name, *span, grid=tensor.grid.name)
            assert found is not None
            yield found

    def _has_codes(self, tensor: OutputTensor) -> bool:
        assert tensor.grid is not None
        name = tensor.source.name if tensor.source else ""
        return bool(name) and tensor.grid.name in self.bundle.grids_of(name)

    def _may_fit(self, tensor: OutputTensor) -> bool:
        assert tensor.source is not None
        outside = tensor.source.block is None
        return outside and self.bundle.grid_of(tensor.source.name) is None

    def _has(self, tensor: OutputTensor) -> str:
        assert tensor.source is not None
        kinds = self.bundle.grids_of(tensor.source.name)
        return f"on {' and '.join(kinds)}" if kinds else "in float"


def _fitted(
    tensor: OutputTensor,
    source: Source,
    span: Span,
    weight: NDArray[np.float32] | None,
    threads: int,
    fit: str,
) -> QuantizedTensor:
    assert tensor.source is not None
    assert tensor.grid is not None
    first, last = _widened(span, tensor.grid.together, tensor.source.shape[0])
    rows = source.rows(tensor.source, first, last)
    try:
        if fit == USUAL_FIT:  # as the fit of this name, without the algorithms' own imports
            found = tensor.grid.quantize(rows, weight, threads=threads)
        else:
            from qconvert.algorithms.registry import fits
            from qconvert.algorithms.whole import fitted

            found = fitted(fits()[fit], tensor.grid, rows, weight, threads)
        return found.take_rows(slice(span[0] - first, span[1] - first))
    except ScaleOverflow as fault:
        raise refuse(
            f"{tensor.source.name} holds a weight too large for {tensor.dtype}: {fault}",
            f"its largest is {np.abs(rows).max():.3g}: choose a float type, or check the model",
        ) from None


def _widened(span: Span, together: int, rows: int) -> Span:
    """With the rows that share parameters with those of `span`."""
    start, stop = span
    return start - start % together, min(rows, stop + -stop % together)


def _magnitude(source: Source, tensor: SourceTensor) -> float:
    """The largest of a matrix, a chunk of rows at a time."""
    rows, step = tensor.shape[0], chunk_rows(tensor.shape[1])
    chunks = (source.rows(tensor, at, min(at + step, rows)) for at in range(0, rows, step))
    return max(float(np.abs(chunk).max()) for chunk in chunks)


def joined(chunks: list[QuantizedTensor]) -> QuantizedTensor:
    """One tensor of the rows of all `chunks`."""
    if len(chunks) == 1:
        return chunks[0]
    params = {
        name: np.concatenate([chunk.params[name] for chunk in chunks]) for name in chunks[0].params
    }
    codes = np.concatenate([chunk.codes for chunk in chunks])
    return QuantizedTensor(chunks[0].grid, codes, params)
