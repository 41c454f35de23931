"""The grid's own search: weighted least squares from many starts (see `kernels.plain.fit`)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.grid import Grid
from qconvert.formats.tensor import QuantizedTensor


@dataclass(frozen=True, slots=True)
class Weighted:
    name: str = "weighted"
    searches: bool = True
    summary: str = "least squares weighted by importance, from many starts (as ggml, searched more)"

    def __call__(
        self,
        grid: Grid,
        w: NDArray[np.float32],
        weight: NDArray[np.float32] | None,
        threads: int,
    ) -> QuantizedTensor:
        return grid.quantize(w, weight, threads=threads)


FIT = Weighted()
