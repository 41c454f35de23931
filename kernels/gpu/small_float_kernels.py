"""Small floats in Triton by whole numbers on their bits; no type of theirs is ever used."""
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def float_of_bits(bits, MANTISSA: tl.constexpr, BIAS: tl.constexpr, MAGNITUDES: tl.constexpr,
                  SIGN: tl.constexpr, ZEROS: tl.constexpr):  # fmt: skip
    """int32 bits of a small float -> its float32 value, NaN for what is none. ZEROS 1: -0 is 0."""
    magnitude = bits & (SIGN - 1)
    normal = (magnitude + ((127 - BIAS) << MANTISSA)) << (23 - MANTISSA)
    low = magnitude.to(tl.float32) * (2.0 ** (1 - BIAS - MANTISSA))
    value = tl.where(magnitude < (1 << MANTISSA), low, normal.to(tl.float32, bitcast=True))
    turned = (bits & SIGN) != 0
    if ZEROS == 1:
        turned = turned & (magnitude != 0)
    value = tl.where(turned, -value, value)
    if MAGNITUDES < SIGN:
        value = tl.where(magnitude < MAGNITUDES, value, float("nan"))
    return value


@triton.jit
def power_of_byte(byte):
    """int32 E8M0 -> 2^(byte - 127), as float32: the least is a subnormal number."""
    bits = tl.where(byte == 0, 0x00400000, byte << 23)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def bfloat16_bits(value):
    """float32 -> int16: the nearest bfloat16, ties to even. The interpreter's own cast is neither
    (triton 3.9: halves go up, and what is carried out of the mantissa is lost)."""
    bits = value.to(tl.int32, bitcast=True)
    even = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return tl.where(value == value, even, 0x7FC0).to(tl.int16)
