"""Float32 values in fewer bytes, where not a bit of them is lost."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.source import Dtype


def exactly(values: NDArray[np.float32], dtype: Dtype) -> NDArray[Any] | None:
    """`values` as `dtype` stores them (bfloat16 as uint16 bits), or None when it cannot hold
    one of them."""
    if dtype == "F32":
        return values
    if dtype == "BF16":
        bits = np.ascontiguousarray(values).view(np.uint32)
        return None if (bits & 0xFFFF).any() else (bits >> 16).astype(np.uint16)
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), values) else None
