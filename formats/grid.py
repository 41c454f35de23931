"""Grid: the set of values that a file can hold, and how floats are fitted onto it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.tensor import QuantizedTensor
from qconvert.kernels.fit import Fit


class ScaleOverflow(ValueError):
    """A weight is too large for what the grid stores its scale in."""


@dataclass(frozen=True, slots=True)
class Lines:
    """What codes stand for once the parameters are fixed: scale * levels[code] + offset."""

    scale: NDArray[np.float32]  # [rows, groups]
    offset: NDArray[np.float32] | None  # [rows, groups]; None: the grid has no offset


class Grid(Protocol):
    """A quantized storage type. Algorithms optimise onto it and know nothing else of the format."""

    @property
    def name(self) -> str:
        """As users write it: "Q4_K"."""
        ...

    @property
    def block(self) -> int:
        """Columns that share parameters; a row's length must be a multiple of it."""
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
    def search(self) -> Fit:
        """How parameters are laid out and searched: one of the kinds of `kernels.fit`. Tensors of
        this grid name their parameters as its `outputs` do."""
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
