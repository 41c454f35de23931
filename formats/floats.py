"""Float storage: float32 to the bytes of F32, F16, BF16, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.refusal import refuse

DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}


def encode_floats(values: NDArray[np.float32], dtype: str, name: str) -> NDArray[Any]:
    """`values` as stored, nearest even. `Refused`, naming the tensor, where one does not fit."""
    if not np.isfinite(values).all():
        raise refuse(f"tensor {name}: the weights hold NaN or Inf", "the checkpoint is damaged")
    if dtype == "F32":
        return values.astype(DTYPES["F32"], copy=False)
    if dtype == "F16":
        with np.errstate(over="ignore"):
            stored: NDArray[Any] = values.astype(DTYPES["F16"])
        fits = np.isfinite(stored).all()
    else:
        stored = _to_bfloat16(values)
        fits = not ((stored & 0x7F80) == 0x7F80).any()
    if not fits:
        largest = float(np.abs(values).max())
        raise refuse(
            f"tensor {name}: {largest:.6g} is too large for {dtype}",
            "take --type BF16 or F32" if dtype == "F16" else "take --type F32",
        )
    return stored


def _to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)
    stored: NDArray[np.uint16] = (rounded >> 16).astype("<u2")
    return stored


def decode_floats(stored: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """The float32 values of stored ones, exactly."""
    if dtype == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32)
