"""Packing planes: the word-at-a-time bodies equal the plain ones; the layout is as stated."""

from __future__ import annotations

import numpy as np
import pytest

from qconvert.kernels.planes import (
    Plane,
    pack_plane,
    pack_plane_plain,
    unpack_plane,
    unpack_plane_plain,
)

PLANES = [
    Plane(8, 32), Plane(4, 32), Plane(4, 64), Plane(4, 128), Plane(2, 128), Plane(2, 128, shift=4),
    Plane(1, 256, shift=2), Plane(1, 256, shift=4), Plane(1, 8, shift=4),
]  # fmt: skip


@pytest.mark.parametrize("plane", PLANES, ids=str)
def test_fast_equals_plain(plane: Plane) -> None:
    codes = np.random.default_rng(0).integers(0, 256, 256 * 5, dtype=np.uint8)
    packed = pack_plane(codes, plane)
    assert packed.tobytes() == pack_plane_plain(codes, plane).tobytes()
    assert unpack_plane(packed, plane).tobytes() == unpack_plane_plain(packed, plane).tobytes()


@pytest.mark.parametrize("plane", PLANES, ids=str)
def test_unpacking_gives_the_masked_codes(plane: Plane) -> None:
    codes = np.random.default_rng(1).integers(0, 256, 512, dtype=np.uint8)
    mask = ((1 << plane.width) - 1) << plane.shift
    assert np.array_equal(unpack_plane(pack_plane(codes, plane), plane), codes & (mask & 0xFF))


def test_neighbours_in_a_byte_lie_a_stride_apart() -> None:
    codes = np.arange(64, dtype=np.uint8) % 16
    packed = pack_plane(codes, Plane(4, 64))
    assert [int(byte) for byte in packed[:3]] == [
        int(codes[i]) | int(codes[i + 32]) << 4 for i in range(3)
    ]
    assert pack_plane(np.array([1, 0, 0, 1, 0, 0, 0, 1], np.uint8), Plane(1, 8)).tolist() == [0x89]
