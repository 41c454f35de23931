"""Bit planes: how codes of a few bits share bytes.

A plane holds `width` bits of every code. Within each run of `group` codes, `8 / width` codes that lie
`group * width / 8` apart share one byte, the first in the lowest bits. Every code layout of GGUF is one
plane or the sum of two (llama.cpp, ggml-quants.c, `dequantize_row_*`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Plane:
    """`width` bits (1, 2, 4 or 8) of each code, from bit `shift` up, in runs of `group` codes."""

    width: int
    group: int
    shift: int = 0

    @property
    def stride(self) -> int:
        """Bytes of one run."""
        return self.group * self.width // 8


def pack_plane(codes: Bytes, plane: Plane) -> Bytes:
    """Flat codes, a multiple of `group` of them -> flat bytes."""
    out = np.empty(codes.size * plane.width // 8, np.uint8)
    if plane.stride == 1:
        _pack_bits(codes.view(np.uint64), out, plane.shift)
    else:
        _pack(*_words(codes, out), plane.width, plane.shift, plane.stride // 8)
    return out


def unpack_plane(packed: Bytes, plane: Plane) -> Bytes:
    """The plane's part of each code, already shifted to its place."""
    out = np.empty(packed.size * 8 // plane.width, np.uint8)
    if plane.stride == 1:
        _unpack_bits(packed, out.view(np.uint64), plane.shift)
    else:
        _unpack(*_words(packed, out), plane.width, plane.shift, plane.stride // 8)
    return out


def _words(*arrays: Bytes) -> tuple[NDArray[np.uint64], ...]:
    return tuple(array.view(np.uint64) for array in arrays)


def pack_plane_plain(codes: Bytes, plane: Plane) -> Bytes:
    """`pack_plane` written out in numpy, the truth."""
    share = 8 // plane.width
    parts = (codes >> plane.shift) & ((1 << plane.width) - 1)
    parts = parts.reshape(-1, share, plane.stride)
    lifts = (np.arange(share, dtype=np.uint8) * plane.width)[None, :, None]
    packed: Bytes = np.bitwise_or.reduce(parts << lifts, axis=1).astype(np.uint8).reshape(-1)
    return packed


def unpack_plane_plain(packed: Bytes, plane: Plane) -> Bytes:
    """`unpack_plane` written out in numpy, the truth."""
    share = 8 // plane.width
    lifts = (np.arange(share, dtype=np.uint8) * plane.width)[None, :, None]
    parts = (packed.reshape(-1, 1, plane.stride) >> lifts) & ((1 << plane.width) - 1)
    unpacked: Bytes = (parts << plane.shift).astype(np.uint8).reshape(-1)
    return unpacked


# The fast bodies work on eight codes at once, as the bytes of one 64-bit word: after the mask no
# part crosses its byte.
_ONES = np.uint64(0x0101010101010101)


@njit(nogil=True, cache=True)
def _pack(codes, out, width, shift, stride):
    share, mask = 8 // width, np.uint64((1 << width) - 1) * _ONES
    for start in range(0, out.size, stride):
        for i in range(stride):
            word = np.uint64(0)
            for k in range(share):
                part = codes[start * share + k * stride + i] >> np.uint64(shift) & mask
                word |= part << np.uint64(k * width)
            out[start + i] = word


@njit(nogil=True, cache=True)
def _unpack(packed, out, width, shift, stride):
    share, mask = 8 // width, np.uint64((1 << width) - 1) * _ONES
    for start in range(0, packed.size, stride):
        for i in range(stride):
            word = packed[start + i]
            for k in range(share):
                part = word >> np.uint64(k * width) & mask
                out[start * share + k * stride + i] = part << np.uint64(shift)


@njit(nogil=True, cache=True)
def _pack_bits(codes, out, shift):
    """Bit `shift` of the eight bytes of a word, gathered by a multiplication into its top byte."""
    for i in range(out.size):
        bits = codes[i] >> np.uint64(shift) & _ONES
        out[i] = bits * np.uint64(0x0102040810204080) >> np.uint64(56)


@njit(nogil=True, cache=True)
def _unpack_bits(packed, out, shift):
    """Bit i of a byte to byte i of a word: copy, keep one bit each, carry any bit to the top one."""
    for i in range(packed.size):
        picked = np.uint64(packed[i]) * _ONES & np.uint64(0x8040201008040201)
        tops = picked + np.uint64(0x7F7F7F7F7F7F7F7F)
        out[i] = (tops >> np.uint64(7) & _ONES) << np.uint64(shift)
