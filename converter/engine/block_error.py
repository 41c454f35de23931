"""The error of a block's output for other weights of its linears, and its gradient.

Rows are computed each in one thread, and summed in their order: the bits do not depend on the
number of threads. In memory are one copy of the block's weights, the summed gradient, and for each
thread the gradient and the activations of one row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from qconvert.engine.block import Block
from qconvert.engine.rounding import Inputs, rounding
from qconvert.engine.skeleton import Call, block_paths
from qconvert.engine.stream import Stream


@dataclass(frozen=True, slots=True)
class Outputs:
    """Satisfies `algorithms.slots.BlockError`; made by `block_error`."""

    stream: Stream
    module: torch.nn.Module
    call: Call
    places: Mapping[str, tuple[torch.nn.Parameter, bool]]  # by role; whether it is transposed
    rows: torch.Tensor  # [rows, length, hidden], that enter the block
    wanted: torch.Tensor  # the same, behind the block in float

    def mean(self, weights: Mapping[str, torch.Tensor], rows: Sequence[int]) -> float:
        self._place(weights)

        def work(row: int) -> float:
            with torch.no_grad():
                return float(self._error(row))

        errors: list[float] = self.stream.pool.map(work, rows)
        return sum(errors) / self._tokens(rows)

    def slopes(
        self, weights: Mapping[str, torch.Tensor], rows: Sequence[int]
    ) -> dict[str, torch.Tensor]:
        self._place(weights)
        parameters = [self.places[role][0] for role in weights]

        def work(row: int) -> tuple[torch.Tensor, ...]:
            with torch.enable_grad():
                return torch.autograd.grad(self._error(row), parameters)

        pool, sums = self.stream.pool, [torch.zeros_like(one.data) for one in parameters]
        for first in range(0, len(rows), pool.count):  # no more gradients at once than threads
            for found in pool.map(work, rows[first : first + pool.count]):
                for total, one in zip(sums, found, strict=True):
                    total += one
        tokens = self._tokens(rows)
        return {
            role: (total.t() if self.places[role][1] else total) / tokens
            for role, total in zip(weights, sums, strict=True)
        }

    def _place(self, weights: Mapping[str, torch.Tensor]) -> None:
        for role, values in weights.items():
            parameter, transposed = self.places[role]
            parameter.data.copy_(values.t() if transposed else values)

    def _tokens(self, rows: Sequence[int]) -> int:
        return len(rows) * self.rows.shape[1]

    def _error(self, row: int) -> torch.Tensor:
        """The sum over the tokens of a row."""
        compute, device = self.stream.compute, self.stream.skeleton.device
        x = self.rows[row : row + 1].to(device, copy=True)
        with torch.autocast(
            device.type, compute, enabled=compute != torch.float32, cache_enabled=False
        ):
            out = self.module(x, *self.call.args, **self.call.kwargs)
        found: torch.Tensor = out[0] if isinstance(out, tuple) else out
        return (found.float() - self.wanted[row : row + 1].to(device)).square().sum()


@contextmanager
def block_error(
    stream: Stream,
    block: Block,
    roles: Sequence[str],
    rows: torch.Tensor,
    wanted: torch.Tensor,
    inputs: Inputs | None = None,
) -> Iterator[Outputs]:
    """Of `block`, for other weights of the linears `roles`, which are changed in a copy, and whose
    inputs are rounded. `wanted` is filled here: what `block` as it is makes of `rows`."""
    stream.forward(block, rows, wanted)
    bones, paths = stream.skeleton, block_paths(stream.skeleton.source, block.index)
    free = {(role, "weight"): torch.empty_like(block.weight(role)) for role in roles}
    call = stream.calls[block.index]
    call = Call(_plain(call.args), _plain(call.kwargs))
    with (
        bones.loaded(block.changed(free)) as module,
        rounding(module, bones.source, block, inputs or {}),
    ):
        places = {}
        for role in roles:
            path, transposed = paths[role, "weight"]
            parameter = module.get_parameter(path)
            parameter.requires_grad_(True)
            places[role] = parameter, transposed
        yield Outputs(stream, module, call, places, rows, wanted)


def _plain(value: Any) -> Any:
    """Tensors that were made in inference mode cannot take part in gradients: copies can."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_plain(one) for one in value)
    return value
