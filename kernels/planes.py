"""Bit planes: how codes of a few bits share bytes (`layouts.Plane`), in numpy arrays.

Every code layout of GGUF is one plane or the sum of two (llama.cpp, ggml-quants.c,
`dequantize_row_*`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qconvert.kernels.cpu import planes as fast
from qconvert.kernels.layouts import Plane as Plane

Bytes = NDArray[np.uint8]
WORD = np.uint64


def pack_plane(codes: Bytes, plane: Plane) -> Bytes:
    """Flat codes, a multiple of `group` of them -> flat bytes."""
    out = np.empty(codes.size * plane.width // 8, np.uint8)
    if plane.stride == 1:
        fast.pack_bits(codes.view(WORD), out, plane.shift)
    else:
        fast.pack(codes.view(WORD), out.view(WORD), plane.width, plane.shift, plane.stride // 8)
    return out


def unpack_plane(packed: Bytes, plane: Plane) -> Bytes:
    """The plane's part of each code, already shifted to its place."""
    out = np.empty(packed.size * 8 // plane.width, np.uint8)
    if plane.stride == 1:
        fast.unpack_bits(packed, out.view(WORD), plane.shift)
    else:
        fast.unpack(packed.view(WORD), out.view(WORD), plane.width, plane.shift, plane.stride // 8)
    return out


def pack_plane_plain(codes: Bytes, plane: Plane) -> Bytes:
    """`pack_plane` written out in numpy, the truth."""
    parts = (codes >> plane.shift) & ((1 << plane.width) - 1)
    parts = parts.reshape(-1, plane.share, plane.stride)
    lifts = (np.arange(plane.share, dtype=np.uint8) * plane.width)[None, :, None]
    packed: Bytes = np.bitwise_or.reduce(parts << lifts, axis=1).astype(np.uint8).reshape(-1)
    return packed


def unpack_plane_plain(packed: Bytes, plane: Plane) -> Bytes:
    """`unpack_plane` written out in numpy, the truth."""
    lifts = (np.arange(plane.share, dtype=np.uint8) * plane.width)[None, :, None]
    parts = (packed.reshape(-1, 1, plane.stride) >> lifts) & ((1 << plane.width) - 1)
    unpacked: Bytes = (parts << plane.shift).astype(np.uint8).reshape(-1)
    return unpacked
