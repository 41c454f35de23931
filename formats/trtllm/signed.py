"""Small floats that keep the sign of a zero, as NVIDIA ModelOpt stores what rounds to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.floats import decode_floats, encode_floats
from qconvert.formats.source import Dtype
from qconvert.kernels.minifloat import Bytes, Floats, MiniFloat


@dataclass(frozen=True, slots=True)
class Signed:
    """The values of `kind` with two codes for zero, that of -0 the lower one; satisfies
    `formats.minifloat.Element`.

    `through`: the type that a value is rounded to before it is rounded to `kind`, where what is
    repeated divides in that type. `negative_zero`: whether -0 itself keeps its sign, too, as in a
    cast of floats; otherwise only what is below zero does.
    """

    kind: MiniFloat
    through: Dtype = "F32"
    negative_zero: bool = True

    @property
    def sign(self) -> int:
        return self.kind.sign

    @property
    def levels(self) -> Floats:
        """[codes], ascending, with -0 before 0."""
        whole = self.kind.levels[self.kind.magnitudes - 1 :]
        return np.concatenate([-whole[::-1], whole])

    @property
    def top(self) -> float:
        return self.kind.top

    def rounded(self, v: Floats) -> Bytes:
        """Codes of the nearest values, ties to even as `MiniFloat.rounded` has them."""
        near = decode_floats(encode_floats(v, self.through, "a quotient"), self.through)
        below = np.signbit(near) if self.negative_zero else near < 0
        magnitude = self.kind.rounded(np.abs(near)) - np.uint8(self.kind.magnitudes - 1)
        return self._code(magnitude, below)

    def bits(self, codes: Bytes) -> Bytes:
        """The stored bits of each code: sign, exponent, mantissa."""
        count = np.uint8(self.kind.magnitudes)
        below = codes < count
        magnitude = np.where(below, count - np.uint8(1) - codes, codes - count)
        return (magnitude | np.where(below, np.uint8(self.sign), np.uint8(0))).astype(np.uint8)

    def codes(self, bits: Bytes) -> Bytes:
        """The inverse of `bits`; `ValueError` for what is not a finite number."""
        magnitude = bits & np.uint8(self.sign - 1)
        if not ((magnitude < self.kind.magnitudes) & (bits < 2 * self.sign)).all():
            raise ValueError("not a finite number")
        return self._code(magnitude, (bits & np.uint8(self.sign)) != 0)

    def _code(self, magnitude: Bytes, below: NDArray[np.bool_]) -> Bytes:
        count = np.uint8(self.kind.magnitudes)
        return np.where(below, count - np.uint8(1) - magnitude, count + magnitude)
