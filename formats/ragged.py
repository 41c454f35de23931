"""Rows whose last group is shorter than the others: filled up with zeros where whole groups are
worked on, and cut again. Zeros lie on every line of an integer grid, and so cost no fit anything.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.tensor import QuantizedTensor


def lacking(cols: int, group: int) -> int:
    """Columns that the last group of a row lacks; `group` 0: the whole row is one."""
    return -cols % group if group else 0


def filled(values: NDArray[Any], group: int, by: float = 0) -> NDArray[Any]:
    """`values` [..., cols], up to whole groups with what is `by`; itself where nothing is lacking.
    Importance is filled up by its mean, which searches take all of it relative to."""
    more = lacking(values.shape[-1], group)
    if not more:
        return values
    return np.concatenate([values, np.full((*values.shape[:-1], more), by, values.dtype)], axis=-1)


def cut(tensor: QuantizedTensor, cols: int) -> QuantizedTensor:
    """The first `cols` columns of a tensor that was filled up; its parameters stay."""
    if tensor.codes.shape[1] == cols:
        return tensor
    return QuantizedTensor(tensor.grid, np.ascontiguousarray(tensor.codes[:, :cols]), tensor.params)
