"""The parts of a GGUF block, in file order: half floats, sub-scales, planes of codes.

Each field packs one part of a tensor to bytes [rows, blocks, nbytes] and reads it back. The layouts
are those of the `block_*` structs in llama.cpp's ggml-common.h.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.tensor import QuantizedTensor
from qconvert.kernels.planes import Plane, pack_plane, unpack_plane

Bytes = NDArray[np.uint8]


class Field(Protocol):
    """One part of a block, `nbytes` long."""

    @property
    def nbytes(self) -> int: ...
    def pack(self, tensor: QuantizedTensor, blocks: int) -> Bytes:
        """[rows, blocks, nbytes]"""
        ...

    def unpack(self, part: Bytes) -> Mapping[str, NDArray[Any]]:
        """Parameters by name, or the codes' bits under "codes"; each [rows, blocks, ...]."""
        ...


def _param(tensor: QuantizedTensor, name: str, blocks: int) -> NDArray[Any]:
    values = tensor.params[name]
    return values.reshape(values.shape[0], blocks, -1)


@dataclass(frozen=True, slots=True)
class Half:
    """One float16."""

    name: str
    nbytes: int = 2

    def pack(self, tensor: QuantizedTensor, blocks: int) -> Bytes:
        return np.ascontiguousarray(_param(tensor, self.name, blocks)).view(np.uint8)

    def unpack(self, part: Bytes) -> Mapping[str, NDArray[Any]]:
        return {self.name: np.ascontiguousarray(part).view(np.float16)}


@dataclass(frozen=True, slots=True)
class Codes:
    """Some bits of every code of the block. `flip` turns offset codes into two's complement."""

    plane: Plane
    block: int
    flip: int = 0

    @property
    def nbytes(self) -> int:
        return self.block * self.plane.width // 8

    def pack(self, tensor: QuantizedTensor, blocks: int) -> Bytes:
        packed = pack_plane(np.ascontiguousarray(tensor.codes).reshape(-1), self.plane)
        if self.flip:
            packed ^= np.uint8(self.flip)
        return packed.reshape(-1, blocks, self.nbytes)

    def unpack(self, part: Bytes) -> Mapping[str, NDArray[Any]]:
        rows, blocks, _ = part.shape
        flat = np.ascontiguousarray(part).reshape(-1)
        flat = flat ^ np.uint8(self.flip) if self.flip else flat
        return {"codes": unpack_plane(flat, self.plane).reshape(rows, blocks, self.block)}


@dataclass(frozen=True, slots=True)
class SignedBytes:
    """Sixteen int8 sub-scales (Q6_K)."""

    nbytes: int = 16

    def pack(self, tensor: QuantizedTensor, blocks: int) -> Bytes:
        return _param(tensor, "scales", blocks).view(np.uint8)

    def unpack(self, part: Bytes) -> Mapping[str, NDArray[Any]]:
        return {"scales": np.ascontiguousarray(part).view(np.int8)}


@dataclass(frozen=True, slots=True)
class NibblePairs:
    """Sixteen bytes, scale low and minimum high (Q2_K)."""

    nbytes: int = 16

    def pack(self, tensor: QuantizedTensor, blocks: int) -> Bytes:
        scales, mins = _param(tensor, "scales", blocks), _param(tensor, "mins", blocks)
        packed: Bytes = scales | mins << 4
        return packed

    def unpack(self, part: Bytes) -> Mapping[str, NDArray[Any]]:
        return {"scales": part & 15, "mins": part >> 4}


@dataclass(frozen=True, slots=True)
class SixBitPairs:
    """Eight 6-bit scales and eight 6-bit minima in twelve bytes (Q4_K, Q5_K).

    Byte j < 4: scale j, and the two high bits of scale j + 4. Byte 4 + j: the same of the minima.
    Byte 8 + j: the low nibbles of scale j + 4 and of minimum j + 4.
    """

    nbytes: int = 12

    def pack(self, tensor: QuantizedTensor, blocks: int) -> Bytes:
        scales, mins = _param(tensor, "scales", blocks), _param(tensor, "mins", blocks)
        low = scales[..., 4:] & 15 | (mins[..., 4:] & 15) << 4
        first = scales[..., :4] | scales[..., 4:] >> 4 << 6
        second = mins[..., :4] | mins[..., 4:] >> 4 << 6
        return np.concatenate([first, second, low], axis=-1)

    def unpack(self, part: Bytes) -> Mapping[str, NDArray[Any]]:
        first, second, low = part[..., :4], part[..., 4:8], part[..., 8:]
        scales = np.concatenate([first & 63, low & 15 | first >> 6 << 4], axis=-1)
        mins = np.concatenate([second & 63, low >> 4 | second >> 6 << 4], axis=-1)
        return {"scales": scales, "mins": mins}


@dataclass(frozen=True, slots=True)
class SixBitScales:
    """Sixteen 6-bit scales, stored plus 32, in twelve bytes (Q3_K).

    Bytes 0..7 hold the low nibbles of scales j and j + 8; byte 8 + j % 4 the two high bits of scale
    j, at bit 2 * (j // 4).
    """

    nbytes: int = 12

    def pack(self, tensor: QuantizedTensor, blocks: int) -> Bytes:
        offset = (_param(tensor, "scales", blocks) + np.int8(32)).view(np.uint8)
        low = offset[..., :8] & 15 | (offset[..., 8:] & 15) << 4
        high = (offset >> 4).reshape(*offset.shape[:-1], 4, 4)
        lifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
        return np.concatenate([low, np.bitwise_or.reduce(high << lifts, axis=-2)], axis=-1)

    def unpack(self, part: Bytes) -> Mapping[str, NDArray[Any]]:
        low = np.concatenate([part[..., :8] & 15, part[..., :8] >> 4], axis=-1)
        lifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
        high = (part[..., None, 8:] >> lifts & 3).reshape(low.shape)
        return {"scales": (low | high << 4).view(np.int8) - np.int8(32)}


@dataclass(frozen=True, slots=True)
class SplitSixBitScales:
    """Eight 6-bit scales, stored plus 32 (IQ4_XS): high bits in a 16-bit word, then low nibbles."""

    nbytes: int = 6

    def pack(self, tensor: QuantizedTensor, blocks: int) -> Bytes:
        offset = (_param(tensor, "scales", blocks) + np.int8(32)).view(np.uint8)
        high = (offset >> 4).reshape(*offset.shape[:-1], 2, 4)
        word = np.bitwise_or.reduce(high << np.array([0, 2, 4, 6], np.uint8), axis=-1)
        low = offset[..., 0::2] & 15 | (offset[..., 1::2] & 15) << 4
        return np.concatenate([word, low], axis=-1)

    def unpack(self, part: Bytes) -> Mapping[str, NDArray[Any]]:
        lifts = np.array([0, 2, 4, 6], np.uint8)
        high = (part[..., :2, None] >> lifts & 3).reshape(*part.shape[:-1], 8)
        low = np.stack([part[..., 2:] & 15, part[..., 2:] >> 4], axis=-1).reshape(high.shape)
        return {"scales": (low | high << 4).view(np.int8) - np.int8(32)}
