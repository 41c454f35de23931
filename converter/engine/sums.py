"""Moments of an input, summed wave by wave: the same bits for any number of threads."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from qconvert.engine.moments import Moments
from qconvert.engine.stream import Workers
from qconvert.formats.refusal import refuse
from qconvert.kernels import moments
from qconvert.kernels.bodies import body_for
from qconvert.kernels.cpu.moments import PANEL, bfloat16_factors


@dataclass(slots=True)
class Sums:
    """Running sums over the tokens of one input of `cols` channels."""

    cols: int
    device: torch.device
    narrow: bool = False  # factors of products are taken as bfloat16; sums are float32 always
    tokens: int = 0
    _second: torch.Tensor = field(init=False)
    _vectors: dict[str, torch.Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self._second = torch.zeros((self.cols, self.cols), device=self.device)
        self._vectors = {
            name: torch.zeros(self.cols, device=self.device)
            for name in ("mean", "mean_abs", "fourth")
        }
        huge = torch.full((self.cols,), torch.inf, device=self.device)
        self._vectors |= {"lowest": huge, "highest": -huge}  # two tensors: changed in place

    def add(self, x: torch.Tensor, pool: Workers) -> None:
        """Add tokens x [n, cols]."""
        self.tokens += len(x)
        moments.add_vectors(self._vectors, x, narrow=self.narrow)
        add_products(self._second, x, x, pool, narrow=self.narrow)

    def moments(self, place: str) -> Moments:
        """The means; `Refused`, naming `place`, when a value was not finite."""
        v = self._vectors
        if not all(bool(torch.isfinite(values).all()) for values in v.values()):
            raise refuse(
                f"activations are not finite at {place}",
                "the checkpoint overflows in float32 on this text: check it with the source model,"
                " or choose another text with --calib",
            )
        n = self.tokens
        second = whole(self._second).div_(n)
        mean, mean_abs, fourth = v["mean"] / n, v["mean_abs"] / n, v["fourth"] / n
        return Moments(n, second, mean, mean_abs, fourth, v["lowest"], v["highest"])


def add_products(
    second: torch.Tensor, x: torch.Tensor, y: torch.Tensor, pool: Workers, *, narrow: bool = False
) -> None:
    """Add x'y, which is symmetric, to the upper triangle of `second`; [cols, cols] from [n, cols].
    Below the triangle, what is left there means nothing. `narrow`: of factors rounded to bfloat16,
    as the linears themselves multiply them then, where the processor gains by it. Only where y is
    x: else what comes out is not quite symmetric, and so not positive definite. On a device one
    kernel makes all of it, on the processor each panel is one thread's."""
    if y is x and body_for(second.device) != "cpu":
        moments.add_products(second, x, narrow=narrow)
        return

    def upper(start: int) -> None:
        stop = start + PANEL
        second[:stop, start:stop] += x[:, :stop].t() @ y[:, start:stop]

    with bfloat16_factors(narrow):
        pool.map(upper, range(0, len(second), PANEL))


def whole(second: torch.Tensor) -> torch.Tensor:
    """The symmetric matrix of which the upper triangle is given: the same, filled in place."""
    for start in range(0, len(second), PANEL):
        stop = start + PANEL
        square = second[start:stop, start:stop].triu()
        second[start:stop, start:stop] = square + square.triu(1).t()
        second[stop:, start:stop] = second[start:stop, stop:].t()
    return second
