"""Scheme: how one linear is stored, and how a serving program rounds what it reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qconvert.formats.grid import Grid
from qconvert.formats.known_grids import grid_named

Activations = Literal["int8", "fp8", "fp4"]
Form = Literal["int", "fp8", "nvfp4", "mxfp4"]


@dataclass(frozen=True, slots=True)
class Scheme:
    """Linears of one scheme are stored alike. The grid holds all that algorithms need of it."""

    name: str  # canonical, as `--type` takes it: "w4a16-g128-asym", "w8a8", "fp8-block"
    form: Form  # of the weights
    bits: int  # of a weight's code
    group: int  # columns that share a scale; 0: the whole row
    grid_name: str  # of `formats.known_grids`
    symmetric: bool = True
    activations: Activations | None = None  # None: as the model computes, in 16 bits
    static: bool = False  # the scale of the activations is fixed, one for a tensor
    alone: bool = False  # a scale of the whole tensor is its own, whatever a runtime fuses

    @property
    def grid(self) -> Grid:
        return grid_named(self.grid_name)

    @property
    def shared(self) -> bool:
        """Whether a whole tensor has one scale, equal in the linears that a runtime fuses."""
        return hasattr(self.grid, "bound")
