"""DequantizeLinear of stored codes: the standard form of a quantized matrix.

y = (x - zero_point) * scale, in blocks along one axis: ONNX, DequantizeLinear of version 21.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from qconvert.formats.onnx.reader_files import BITS, Array, Initializer
from qconvert.formats.onnx.reader_matrices import (
    ROUNDING_LEVEL,
    SIGNED,
    Floats,
    Matrix,
    floats,
    kind,
    rounding,
    unpack,
)
from qconvert.formats.refusal import refuse


@dataclass(frozen=True, slots=True)
class Linear:
    """One DequantizeLinear: what it reads, and how."""

    name: str
    codes: Initializer  # two dimensions
    scales: Initializer
    zeros: Initializer | None
    axis: int  # along which blocks lie: 0 or 1
    block: int

    @property
    def bits(self) -> int:
        return BITS[self.codes.dtype]

    @property
    def signed(self) -> bool:
        return TensorProto.DataType.Name(self.codes.dtype) in SIGNED

    def part(self, first: slice, second: slice) -> Floats:
        """What stands at `first` and `second` of the two axes."""
        cut = (first, second)
        along = cut[self.axis]
        groups = slice(along.start // self.block, -(-along.stop // self.block))
        where = (groups, second) if self.axis == 0 else (first, groups)
        skipped = along.start - groups.start * self.block
        kept = slice(skipped, skipped + along.stop - along.start)

        def spread(values: Array) -> Floats:
            wide = np.repeat(values.astype(np.float32), self.block, self.axis)
            return wide[kept] if self.axis == 0 else wide[:, kept]

        values = _codes(self.codes, self.bits, self.signed, cut).astype(np.float32)
        if self.zeros is not None:
            values -= spread(_codes(self.zeros, self.bits, self.signed, where))
        return values * spread(floats(self.scales)[where])


def _codes(one: Initializer, bits: int, signed: bool, cut: tuple[slice, slice]) -> Array:
    """A part of a tensor of codes, two dimensions, packed without padding."""
    first, second = cut
    columns, per = one.shape[1], 8 // bits
    packed = one.array.reshape(-1).view(np.uint8)
    if columns % per or second.start % per or second.stop % per:
        whole = unpack(packed[None], bits, signed)[0, : one.shape[0] * columns]
        return whole.reshape(one.shape)[cut]
    bytes_ = packed.reshape(one.shape[0], columns // per)
    return unpack(bytes_[first, second.start // per : second.stop // per], bits, signed)


def dequantized(one: Linear, *, transposed: bool, fused: bool) -> Matrix:
    """As a matrix [out, in]; `transposed`: it lies as [in, out]. `fused`: ONNX Runtime makes a
    MatMulNBits of it, at level 4 where nothing else is asked. `Refused` where sizes do not fit."""
    if len(one.codes.shape) != 2 or one.block <= 0 or one.axis not in (0, 1):
        raise refuse(f"{one.name} does not dequantize a matrix in blocks, which qconvert reads")
    sizes = list(one.codes.shape)
    sizes[one.axis] = -(-sizes[one.axis] // one.block)
    for beside in (one.scales, one.zeros):
        if beside is not None and list(beside.shape) != sizes:
            raise refuse(f"{one.name}: {beside.name} is {list(beside.shape)}, not {sizes}")
    if one.zeros is not None and one.zeros.dtype != one.codes.dtype:
        raise refuse(f"{one.name}: {one.zeros.name} is stored in another type than its codes")

    def read(start: int, stop: int) -> Floats:
        if transposed:
            return one.part(slice(0, one.codes.shape[0]), slice(start, stop)).T
        return one.part(slice(start, stop), slice(0, one.codes.shape[1]))

    shape = one.codes.shape[::-1] if transposed else one.codes.shape
    parts = [one.codes, one.scales, *([one.zeros] if one.zeros is not None else [])]
    plain = one.zeros is None if one.signed else _middle(one.zeros, one.bits)
    return Matrix(
        (shape[0], shape[1]),
        kind(one.bits, one.block, not plain),
        sum(part.nbytes for part in parts),
        one.codes.place,
        read,
        rounding(one.bits, one.block, ROUNDING_LEVEL, None) if fused else None,
    )


def _middle(zeros: Initializer | None, bits: int) -> bool:
    """Whether all zero points are the middle of unsigned codes."""
    if zeros is None:
        return False
    half = 1 << (bits - 1)
    return bool((unpack(zeros.array.reshape(1, -1).view(np.uint8), bits, False) == half).all())
