"""Floats of 8 and 4 bits: every value, rounding to them as hardware does, and their bits.

Sources: the OCP 8-bit floating point specification 1.0 (e4m3) and the OCP microscaling formats
specification 1.0 (e2m1, E8M0). Codes here count the distinct finite values from the lowest up; both
zeros are one code, and its bits are those of +0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class MiniFloat:
    """A sign, exponent bits, mantissa bits; no infinities. What is larger is rounded to `top`."""

    mantissa: int  # bits
    bias: int  # of the exponent
    magnitudes: int  # finite values that are not negative
    sign: int  # its bit

    @property
    def levels(self) -> Floats:
        """[codes], ascending: what each code stands for. Not to be written to."""
        return _levels(self)

    @property
    def top(self) -> float:
        """The largest value."""
        return float(self.levels[-1])

    def rounded(self, v: Floats) -> Bytes:
        """Codes of the nearest values; a tie goes to the value whose lowest mantissa bit is 0."""
        a = np.minimum(np.abs(v), np.float32(self.top))
        drop = np.uint32(23 - self.mantissa)
        found = a.view(np.uint32) >> drop
        found &= np.uint32(1)
        found += a.view(np.uint32)
        found += np.uint32((1 << (22 - self.mantissa)) - 1)
        found >>= drop
        found -= np.uint32((127 - self.bias) << self.mantissa)
        normal = np.float32(2.0 ** (1 - self.bias))
        low = np.rint(a * np.float32((1 << self.mantissa) / normal)).astype(np.uint32)
        found = np.where(a < normal, low, found).astype(np.int16)
        np.negative(found, where=v < 0, out=found)
        found += np.int16(self.magnitudes - 1)
        return found.astype(np.uint8)

    def bits(self, codes: Bytes) -> Bytes:
        """The stored bits of each code: sign, exponent, mantissa."""
        return _bits(self)[codes]

    def codes(self, bits: Bytes) -> Bytes:
        """The inverse of `bits`; -0 becomes 0. `ValueError` for what is not a finite number."""
        magnitude = bits & np.uint8(self.sign - 1)
        if not ((magnitude < self.magnitudes) & (bits < 2 * self.sign)).all():
            raise ValueError("not a finite number")
        signed = np.where(bits & np.uint8(self.sign), -magnitude.astype(np.int16), magnitude)
        return (signed + (self.magnitudes - 1)).astype(np.uint8)


E4M3 = MiniFloat(mantissa=3, bias=7, magnitudes=127, sign=0x80)
"""torch.float8_e4m3fn: 253 values up to 448. 0x7f and 0xff are NaN and have no code."""
E2M1 = MiniFloat(mantissa=1, bias=1, magnitudes=8, sign=0x8)
"""0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives: 15 values, in nibbles."""


@lru_cache(maxsize=8)
def _levels(kind: MiniFloat) -> Floats:
    bits = np.arange(kind.magnitudes)
    exponent, fraction = bits >> kind.mantissa, bits & (1 << kind.mantissa) - 1
    whole = np.where(exponent > 0, fraction + (1 << kind.mantissa), fraction)
    values = np.ldexp(whole, np.maximum(exponent, 1) - kind.bias - kind.mantissa)
    levels = np.concatenate([-values[:0:-1], values]).astype(np.float32)
    levels.setflags(write=False)
    return levels


@lru_cache(maxsize=8)
def _bits(kind: MiniFloat) -> Bytes:
    bits = np.arange(kind.magnitudes, dtype=np.uint8)
    return np.concatenate([bits[:0:-1] | np.uint8(kind.sign), bits])


ONE_EXPONENT = 127
"""The E8M0 byte of 1. A byte e stands for 2^(e - 127), 0 to 254; 255 is NaN."""


def powers(exponents: Bytes) -> Floats:
    """The float32 values of E8M0 bytes, exact: 2^-127 is a subnormal float32."""
    return np.ldexp(np.float32(1), exponents.astype(np.int32) - ONE_EXPONENT)


def floor_power(a: Floats) -> NDArray[np.int32]:
    """The exponent of the largest power of two that is not above each positive a."""
    return np.asarray(np.frexp(a)[1] - 1, np.int32)
