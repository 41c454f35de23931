"""Scales as they are stored, without a bit lost, and the ranges that they are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.floats import DTYPES, decode_floats, encode_floats
from qconvert.formats.refusal import Refused
from qconvert.kernels.minifloat import E2M1, E4M3

Floats = NDArray[np.float32]

E4M3_LARGEST = E4M3.top  # 448
INT8_LARGEST = 127.0
FP4_RANGE = E2M1.top * E4M3.top  # 2688
"""Largest magnitude of an FP4 value under an e4m3 scale, before the scale of the tensor."""


def exact(values: NDArray[Any], dtype: str, name: str) -> NDArray[Any]:
    """`values` as `dtype` stores them; `ValueError`, naming the tensor, where one is not exact."""
    wanted = np.asarray(values, dtype=np.float32)
    try:
        stored = encode_floats(wanted, dtype, name)
    except Refused as refused:
        raise ValueError(str(refused)) from None
    if not np.array_equal(decode_floats(stored, dtype), wanted):
        raise ValueError(f"{name}: a scale is not exact in {dtype}")
    return stored


def floats(stored: NDArray[Any]) -> Floats:
    """The float32 values of an array of F32, F16 or BF16 (uint16)."""
    kind = next(name for name, dtype in DTYPES.items() if dtype == stored.dtype)
    return decode_floats(stored, kind)
