"""The fast bodies of `planes.py`, compiled by numba.

They work on eight codes at once, as the bytes of one 64-bit word: after the mask no part crosses
its byte. Flat arrays: uint64 words, and uint8 where a byte gathers bits; `stride` counts words.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_ONES = np.uint64(0x0101010101010101)


@njit(nogil=True, cache=True)
def pack(codes, out, width, shift, stride):
    share, mask = 8 // width, np.uint64((1 << width) - 1) * _ONES
    for start in range(0, out.size, stride):
        for i in range(stride):
            word = np.uint64(0)
            for k in range(share):
                part = codes[start * share + k * stride + i] >> np.uint64(shift) & mask
                word |= part << np.uint64(k * width)
            out[start + i] = word


@njit(nogil=True, cache=True)
def unpack(packed, out, width, shift, stride):
    share, mask = 8 // width, np.uint64((1 << width) - 1) * _ONES
    for start in range(0, packed.size, stride):
        for i in range(stride):
            word = packed[start + i]
            for k in range(share):
                part = word >> np.uint64(k * width) & mask
                out[start * share + k * stride + i] = part << np.uint64(shift)


@njit(nogil=True, cache=True)
def pack_bits(codes, out, shift):
    """Bit `shift` of the eight bytes of a word, gathered by a multiplication into its top byte."""
    for i in range(out.size):
        bits = codes[i] >> np.uint64(shift) & _ONES
        out[i] = bits * np.uint64(0x0102040810204080) >> np.uint64(56)


@njit(nogil=True, cache=True)
def unpack_bits(packed, out, shift):
    """Bit i of a byte to byte i of a word: copy, keep one bit each, carry it to the top."""
    for i in range(packed.size):
        picked = np.uint64(packed[i]) * _ONES & np.uint64(0x8040201008040201)
        tops = picked + np.uint64(0x7F7F7F7F7F7F7F7F)
        out[i] = (tops >> np.uint64(7) & _ONES) << np.uint64(shift)


@njit(nogil=True, cache=True)
def pack_numbers(stored, runs, out):
    """Numbers [blocks, total] into the bytes [blocks, nbytes] that `runs` name: rows of first,
    count, at, lift, width, shift (`layouts.Run`)."""
    out[:] = 0
    for b in range(stored.shape[0]):
        for first, count, at, lift, width, shift in runs:
            mask = (1 << width) - 1
            for i in range(count):
                out[b, at + i] |= (stored[b, first + i] >> shift & mask) << lift


@njit(nogil=True, cache=True)
def unpack_numbers(packed, runs, out):
    out[:] = 0
    for b in range(packed.shape[0]):
        for first, count, at, lift, width, shift in runs:
            mask = (1 << width) - 1
            for i in range(count):
                out[b, first + i] |= (packed[b, at + i] >> lift & mask) << shift


@njit(nogil=True, cache=True)
def on_lines(codes, levels, scale, offset, out):
    """scale * levels[code] + offset over groups of codes [groups, size]; offset may be empty."""
    for g in range(codes.shape[0]):
        for i in range(codes.shape[1]):
            out[g, i] = scale[g] * levels[codes[g, i]]
        if offset.size:
            for i in range(codes.shape[1]):
                out[g, i] += offset[g]
