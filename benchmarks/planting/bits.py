"""Codes in and out of packed bytes, low bits first, by numpy alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int16]


def unpack(packed: NDArray[Any], bits: int, count: int) -> Codes:
    """[..., count] codes from the last axis of `packed`, whose words are little-endian."""
    data = np.ascontiguousarray(packed).view(np.uint8)
    each = 8 // bits
    parts = [(data >> (bits * place)) & ((1 << bits) - 1) for place in range(each)]
    joined = np.stack(parts, -1).reshape(*data.shape[:-1], -1)
    return joined[..., :count].astype(np.int16)


def pack(codes: NDArray[Any], bits: int, like: NDArray[Any]) -> NDArray[Any]:
    """The inverse, in the shape and type of `like`; what lies behind the last code stays."""
    each = 8 // bits
    room = np.ascontiguousarray(like).view(np.uint8)
    whole = unpack(room, bits, room.shape[-1] * each)
    whole[..., : codes.shape[-1]] = codes & ((1 << bits) - 1)
    split = whole.reshape(*room.shape, each).astype(np.uint8)
    packed = np.zeros(room.shape, np.uint8)
    for place in range(each):
        packed |= split[..., place] << np.uint8(bits * place)
    return packed.view(like.dtype).reshape(like.shape)
