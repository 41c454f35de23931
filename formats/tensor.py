"""The neutral form of a quantized tensor: every format packs from it and unpacks to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """Unpacked codes and the grid's own parameters, already rounded to what the file stores.

    `params` has the rows as its first axis in every entry, so that `take_rows` needs no
    knowledge of the grid. The codes are made once: nothing derives them again from floats.
    """

    grid: str  # name of the grid: "Q4_K"
    codes: NDArray[np.uint8]  # [rows, cols]
    params: Mapping[str, NDArray[np.generic]]  # each [rows, ...]

    @property
    def shape(self) -> tuple[int, int]:
        rows, cols = self.codes.shape
        return rows, cols

    def take_rows(self, order: NDArray[np.intp] | slice) -> QuantizedTensor:
        """The same tensor with its rows in another order (rope order, joined or split rows)."""
        params = {name: values[order] for name, values in self.params.items()}
        return QuantizedTensor(self.grid, self.codes[order], params)
