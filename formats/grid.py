"""Grid: the set of values that a file can hold, and how floats are fitted onto it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.tensor import QuantizedTensor
from qconvert.kernels.searches import (
    Fit,
)


class ScaleOverflow(ValueError):
    """A weight is too large for what the grid stores its scale in."""


@dataclass(frozen=True, slots=True)
class Lines:
    """What codes stand for once the parameters are fixed: scale * levels[code] + offset."""

    scale: NDArray[np.float32]  # [rows, groups]
    offset: NDArray[np.float32] | None  # [rows, groups]; None: the grid has no offset


class Bindable(Protocol):
    """A grid with one more scale, which a whole tensor (and what is fused with it) shares. It
    decodes, packs and unpacks as it is, and fits once that scale is known: `bound` gives a Grid."""

    def bound(self, largest: float) -> Grid:
        """The grid for tensors whose largest magnitude, over all that share the scale, is this."""
        ...


class Searched(Protocol):
    """A grid whose `quantize` is the search that `search` describes and nothing more: so kernels on
    another device find the same codes."""

    def stored(self, found: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[Any]]:
        """Parameters that the search found, by the names of its `outputs`, as a tensor of this grid
        keeps them. `ScaleOverflow` when a scale cannot be stored."""
        ...


class Grid(Protocol):
    """A quantized storage type. Algorithms optimise onto it and know nothing else of the format."""

    @property
    def name(self) -> str:
        """As users write it: "Q4_K"."""
        ...

    @property
    def block(self) -> int:
        """Columns that share parameters; a row's length must be a multiple of it, but on integer
        grids, where the last group may be shorter. Algorithms see whole ones (`formats.ragged`)."""
        ...

    @property
    def bits_per_weight(self) -> float: ...

    @property
    def group(self) -> int:
        """Columns that share one scale (and offset): at most `block`, which it divides. 0 for both:
        the whole row."""
        ...

    @property
    def levels(self) -> NDArray[np.float32]:
        """[codes], ascending: what each code stands for before scale and offset."""
        ...

    @property
    def has_offset(self) -> bool: ...

    @property
    def together(self) -> int:
        """Rows that share parameters: 1, or 128 where a block of 128 x 128 has one scale. Rows come
        to `quantize` and `place` in whole multiples of it, but for the end of the tensor."""
        ...

    @property
    def search(self) -> Fit:
        """How parameters are laid out and searched: one of the kinds of `kernels.searches`. Tensors
        of this grid name their parameters as its `outputs` do."""
        ...

    def lines(self, tensor: QuantizedTensor) -> Lines:
        """The scale and offset of each group, exactly as `decode` uses them."""
        ...

    def place(
        self,
        w: NDArray[np.float32],  # [rows, cols]
        lines: Lines,
        *,
        threads: int = 1,
    ) -> QuantizedTensor:
        """Parameters nearest to the wanted `lines` that the file can store, and nearest codes."""
        ...

    def quantize(
        self,
        w: NDArray[np.float32],  # [rows, cols]
        weight: NDArray[np.float32] | None = None,  # [cols], importance of each column
        *,
        threads: int = 1,
    ) -> QuantizedTensor:
        """Fit parameters, rounded to what the file stores, and choose the nearest codes.

        `ScaleOverflow` when a scale cannot be stored.
        """
        ...

    def decode(self, tensor: QuantizedTensor) -> NDArray[np.float32]:
        """The float32 values [rows, cols] that the file stands for."""
        ...

    def pack(self, tensor: QuantizedTensor) -> NDArray[np.uint8]:
        """The file's bytes, [rows, bytes per row]."""
        ...

    def unpack(self, packed: NDArray[np.uint8], cols: int) -> QuantizedTensor:
        """The inverse of `pack`: `unpack(pack(t), cols) == t`, codes and parameters."""
        ...

    def row_bytes(self, cols: int) -> int: ...
