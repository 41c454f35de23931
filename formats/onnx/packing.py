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


def elements(codes: NDArray[np.uint8], kind: Kind, width: int) -> Bytes:
    """Elements of INT4 or INT8 (UINT4, UINT8 of an asymmetric kind) in the order of `codes`, the
    first of two in the lower half of a byte. Signed values are in two's complement."""
    values = np.ascontiguousarray(codes).reshape(1, -1)
    if kind.symmetric:
        values = (values - np.uint8(1 << (kind.bits - 1))) & np.uint8((1 << width) - 1)
    packed: Bytes = fields(values, width)[0]
    return packed
