"""What a graph multiplies by: each kind of stored matrix, decoded a few rows at a time.

Every matrix is [out, in] here, however it lies in the file. Formulas: the schemas of
MatMulNBits and GatherBlockQuantized in onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from qconvert.formats.floats import decode_floats
from qconvert.formats.onnx.reader_files import BITS, Array, Initializer
from qconvert.formats.refusal import refuse
from qconvert.formats.target import InputRounding

Floats = NDArray[np.float32]
FLOATS: Mapping[int, str] = {
    TensorProto.FLOAT: "F32", TensorProto.FLOAT16: "F16", TensorProto.BFLOAT16: "BF16",
}  # fmt: skip
SIGNED = frozenset({"INT2", "INT4", "INT8"})
CHUNK = 1 << 24  # elements decoded at a time: temporaries stay small beside the result
USUAL_GROUP = 32
ROUNDING_LEVEL = 4
EXACT = frozenset({(2, 16), (2, 256)})
"""(bits, block_size) for which no kernel rounds what it reads, at any level: measured, onnxruntime
1.31.1 on x86-64 with AVX-512 VNNI. In all others it makes int8 of each block, scale largest/127."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix [out, in]: `read(start, stop)` decodes rows."""

    shape: tuple[int, int]
    dtype: str  # "int4", "int4-g64-asym", or "F32"
    nbytes: int
    place: tuple[str, int]  # the same where two nodes read the same bytes
    read: Callable[[int, int], Floats] = field(repr=False, compare=False)
    rounding: InputRounding | None = None  # of what it is multiplied with

    def rows(self, start: int, stop: int) -> Floats:
        found = np.empty((stop - start, self.shape[1]), np.float32)
        step = max(1, CHUNK // max(self.shape[1], 1))
        for at in range(start, stop, step):
            end = min(at + step, stop)
            found[at - start : end - start] = self.read(at, end)
        return found


def attributes(node: NodeProto) -> dict[str, Any]:
    return {one.name: helper.get_attribute_value(one) for one in node.attribute}


def floats(one: Initializer) -> Floats:
    """A stored float tensor as float32."""
    if one.dtype not in FLOATS:
        raise refuse(
            f"{one.name} is stored as {TensorProto.DataType.Name(one.dtype)}, not in float"
        )
    return decode_floats(one.array, FLOATS[one.dtype]).reshape(one.shape)


def float_matrix(one: Initializer, *, transposed: bool) -> Matrix:
    """Of a float tensor [out, in], or [in, out] when `transposed`."""
    if len(one.shape) != 2:
        raise refuse(f"{one.name} is no matrix: {list(one.shape)}")
    dtype = FLOATS.get(one.dtype) or TensorProto.DataType.Name(one.dtype)

    def read(start: int, stop: int) -> Floats:
        part = one.array[:, start:stop].T if transposed else one.array[start:stop]
        return decode_floats(np.ascontiguousarray(part), dtype)

    floats_only = one.dtype in FLOATS
    if not floats_only:
        raise refuse(f"{one.name} is stored as {dtype}, and nothing says what it stands for")
    out, into = one.shape[::-1] if transposed else one.shape
    return Matrix((out, into), dtype, one.nbytes, one.place, read)


@dataclass(frozen=True, slots=True)
class Blocks:
    """Codes of one matrix in blocks of columns: MatMulNBits and GatherBlockQuantized."""

    codes: Array  # uint8 [out, blocks * block * bits / 8]
    scales: Initializer
    zeros: Initializer | None
    bits: int
    block: int
    columns: int
    signed: bool = False  # codes are two's complement and 0 stands for 0

    @property
    def groups(self) -> int:
        return -(-self.columns // self.block)

    def read(self, start: int, stop: int) -> Floats:
        """(code - zero) * scale, in float32 as the operators compute it."""
        codes = unpack(self.codes[start:stop], self.bits, self.signed)
        codes = codes.reshape(stop - start, -1, self.block)
        scales = floats(self.scales).reshape(-1, self.groups)[start:stop]
        whole = (codes.astype(np.float32) - self._zero(start, stop)) * scales[..., None]
        flat = whole.reshape(stop - start, -1)
        found: Floats = flat[:, : self.columns]
        return found

    def _zero(self, start: int, stop: int) -> Any:
        """[rows, groups, 1], or the number that absent zero points mean."""
        if self.zeros is None:
            return np.float32(0 if self.signed else 1 << (self.bits - 1))
        if self.zeros.dtype in FLOATS:
            whole = floats(self.zeros).reshape(-1, self.groups)
            return whole[start:stop, :, None]
        packed = self.zeros.array.reshape(self.codes.shape[0], -1)[start:stop]
        unpacked = unpack(packed, self.bits, self.signed)[:, : self.groups]
        return unpacked.astype(np.float32)[..., None]


def unpack(packed: Array, bits: int, signed: bool) -> Array:
    """Codes [rows, n] of bytes [rows, n * bits / 8], low bits first."""
    per = 8 // bits
    shifts = np.arange(per, dtype=np.uint8) * np.uint8(bits)
    bytes_ = packed.view(np.uint8)[..., None]
    codes = (bytes_ >> shifts) & np.uint8((1 << bits) - 1)
    codes = codes.reshape(*packed.shape[:-1], -1)
    if not signed:
        return codes
    half = 1 << (bits - 1)
    return (
        (codes ^ np.uint8(half)).astype(np.int8) - np.int8(half) if bits < 8 else codes.view("i1")
    )


def kind(bits: int, block: int, zeros: bool) -> str:
    group = "" if block == USUAL_GROUP else f"-g{block}"
    return f"int{bits}{group}{'-asym' if zeros else ''}"


def rounding(bits: int, block: int, level: int, zeros: Initializer | None) -> InputRounding | None:
    """How MatMulNBits rounds what it reads, in blocks of its own; float zero points keep it from
    doing so."""
    if level != ROUNDING_LEVEL or (bits, block) in EXACT:
        return None
    if zeros is not None and zeros.dtype in FLOATS:
        return None
    return InputRounding("int8", block)


def block_matrix(
    name: str,
    codes: Initializer,
    scales: Initializer,
    zeros: Initializer | None,
    shape: tuple[int, int],
    bits: int,
    block: int,
    level: int = 0,
) -> Matrix:
    """Of MatMulNBits and GatherBlockQuantized; `Refused` where sizes contradict each other."""
    rows, columns = shape
    if bits not in (2, 4, 8) or block < 16 or block & (block - 1):
        raise refuse(f"{name} has {bits} bits in blocks of {block}, which qconvert does not read")
    groups = -(-columns // block)
    signed = TensorProto.DataType.Name(codes.dtype) in SIGNED
    wide = rows * groups * block * bits // 8
    if codes.nbytes != wide or BITS[codes.dtype] not in (8, bits):
        raise refuse(f"{name}: {codes.name} has {codes.nbytes:,} bytes, and {rows} x {columns}"
                     f" codes take {wide:,}")  # fmt: skip
    if np.prod(scales.shape) != rows * groups:
        raise refuse(f"{name}: {scales.name} is {list(scales.shape)}, not [{rows}, {groups}]")
    parts = [codes, scales]
    if zeros is not None:
        each = groups if zeros.dtype in FLOATS else -(-groups * bits // 8)
        count = zeros.array.size
        if count != rows * each:
            raise refuse(f"{name}: {zeros.name} has {count:,} zero points or bytes of them, not"
                         f" {rows * each:,}")  # fmt: skip
        parts.append(zeros)
    held = Blocks(codes.array.reshape(rows, -1), scales, zeros, bits, block, columns, signed)
    return Matrix(
        shape,
        kind(bits, block, zeros is not None),
        sum(one.nbytes for one in parts),
        codes.place,
        held.read,
        rounding(bits, block, level, zeros),
    )
