"""Rows of one quantized tensor, put together as they come."""

from __future__ import annotations

import numpy as np

from qconvert.formats.tensor import QuantizedTensor


class Gathered:
    """Holds the whole tensor once, whatever the sizes of the pieces."""

    def __init__(self, like: QuantizedTensor, rows: int) -> None:
        self._grid, self._rows = like.grid, 0
        self._codes = np.empty((rows, like.shape[1]), like.codes.dtype)
        self._params = {
            name: np.empty((rows, *values.shape[1:]), values.dtype)
            for name, values in like.params.items()
        }

    def add(self, rows: QuantizedTensor) -> None:
        """Append; `ValueError` where the piece is of other columns or parameters."""
        start, stop = self._rows, self._rows + rows.shape[0]
        if rows.params.keys() != self._params.keys():
            raise ValueError(f"parameters {sorted(rows.params)}, before {sorted(self._params)}")
        self._codes[start:stop] = rows.codes
        for name, values in rows.params.items():
            if values.dtype != self._params[name].dtype:
                raise ValueError(f"{name} is {values.dtype}, before {self._params[name].dtype}")
            self._params[name][start:stop] = values
        self._rows = stop

    def whole(self) -> QuantizedTensor:
        return QuantizedTensor(self._grid, self._codes, self._params)
