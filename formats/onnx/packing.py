"""Codes -> bytes, as the operators of ONNX Runtime read them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.onnx.kinds import Kind
from qconvert.formats.tensor import QuantizedTensor

Bytes = NDArray[np.uint8]


def fields(codes: NDArray[np.uint8], width: int) -> Bytes:
    """[rows, n] values below 2^width -> [rows, ceil(n * width / 8)], the first in the lowest bits;
    every row begins a byte."""
    per = 8 // width
    if per == 1:
        return np.ascontiguousarray(codes)
    rows, count = codes.shape
    if count % per:
        codes = np.pad(codes, ((0, 0), (0, per - count % per)))
    parts = codes.reshape(rows, -1, per)
    packed = parts[..., 0].copy()
    for at in range(1, per):
        packed |= parts[..., at] << np.uint8(at * width)
    return packed


def code_bytes(tensor: QuantizedTensor, kind: Kind) -> Bytes:
    """B of MatMulNBits, [rows, cols * field / 8]."""
    return fields(tensor.codes + np.uint8(kind.shift), kind.field)


def zero_bytes(tensor: QuantizedTensor, kind: Kind) -> Bytes:
    """zero_points of MatMulNBits, [rows, ceil(groups * field / 8)]."""
    return fields(tensor.params["zero"].astype(np.uint8), kind.field)


def scales(tensor: QuantizedTensor) -> NDArray[np.float32]:
    """[rows, groups]"""
    return np.ascontiguousarray(tensor.params["d"].astype("<f4"))
