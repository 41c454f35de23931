"""Activations as a runtime will round them, so that later blocks are calibrated on its errors.

A scale that is made of the values at hand maps the largest of them to the type's largest number.
One that a file fixes does so with the reach that calibration chose (`reach`). FP4 (NVFP4) has
both: a scale of the tensor, and in e4m3 times it one for 16 columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from qconvert.engine.block import READS, Block
from qconvert.engine.skeleton import block_paths
from qconvert.formats.source import Source
from qconvert.formats.target import InputRounding

_LEAST = 1e-30


def _int8(x: torch.Tensor) -> torch.Tensor:
    return x.round().clamp(-128, 127)


def _e4m3(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(-448, 448).to(torch.float8_e4m3fn).float()


def _e2m1(x: torch.Tensor) -> torch.Tensor:
    """Steps of 0.5 below 2, of 1 below 4, of 2 up to 6; ties to even."""
    size = x.abs()
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    return ((x / step).round() * step).clamp(-6, 6)


@dataclass(frozen=True, slots=True)
class _Kind:
    top: float
    nearest: Callable[[torch.Tensor], torch.Tensor]
    scales_top: float = 0.0  # of scales that are e4m3 themselves; 0: they are float32


_KINDS: Mapping[str, _Kind] = {
    "int8": _Kind(127.0, _int8),
    "fp8": _Kind(448.0, _e4m3),
    "fp4": _Kind(6.0, _e2m1, 448.0),
}


@dataclass(frozen=True, slots=True)
class Rounded:
    """How the input of one linear is rounded."""

    how: InputRounding
    reach: float  # what a fixed scale covers: the magnitude that maps to the largest number

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., cols]; gradients pass as if nothing was rounded."""
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            values = self._values(x.float())
        return x + (values - x).detach() if x.requires_grad else values

    def _values(self, x: torch.Tensor) -> torch.Tensor:
        kind = _KINDS[self.how.kind]
        fixed = self.how.scale or max(self.reach, _LEAST) / (kind.top * (kind.scales_top or 1))
        if self.how.per < 0:
            return kind.nearest(x / fixed) * fixed
        pieces: torch.Tensor = x.unflatten(-1, (-1, self.how.per or x.shape[-1]))
        scale = pieces.abs().amax(-1, keepdim=True) / kind.top
        if kind.scales_top:
            scale = _e4m3(scale / fixed) * fixed
        scale = scale.clamp_min(_LEAST)
        return (kind.nearest(pieces / scale) * scale).reshape(x.shape)


def is_fixed(how: InputRounding) -> bool:
    """Whether there is a scale that calibration fixes."""
    return how.scale is None and (how.per < 0 or bool(_KINDS[how.kind].scales_top))


Inputs = Mapping[str, Rounded]
"""By role, of the linears whose inputs are rounded."""


def inputs_of(
    roundings: Mapping[str, InputRounding], reach: Mapping[str, float]
) -> dict[str, Rounded]:
    """`roundings` by role; `reach` by the names of `READS`."""
    return {role: Rounded(how, reach[READS[role]]) for role, how in roundings.items()}


@contextmanager
def rounding(
    module: torch.nn.Module, source: Source, block: Block, inputs: Inputs
) -> Iterator[None]:
    """Within, the linears of `module`, which is that of `block`, read what `inputs` makes of it."""
    hooks, paths = [], block_paths(source, block.index)

    def before(one: Rounded) -> Callable[[torch.nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        return lambda _, args: (one(args[0]), *args[1:])

    for role, one in inputs.items():
        linear = module.get_submodule(paths[role, "weight"][0].rpartition(".")[0])
        hooks.append(linear.register_forward_pre_hook(before(one)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
