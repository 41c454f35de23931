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
    value = tl.where(turned, value * -1.0, value)  # before Triton 3.9, -x is 0 - x: never -0
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


@triton.jit
def magnitude_of(v, MANTISSA: tl.constexpr, BIAS: tl.constexpr, TOP: tl.constexpr):
    """float32 -> int32 exponent and mantissa of the nearest magnitude, ties to the even mantissa;
    `kernels.minifloat.MiniFloat.rounded`."""
    a = tl.abs(v)
    a = tl.where(a < TOP, a, TOP)
    bits = a.to(tl.int32, bitcast=True)
    drop: tl.constexpr = 23 - MANTISSA
    normal = (bits + ((bits >> drop) & 1) + ((1 << (drop - 1)) - 1)) >> drop
    normal -= (127 - BIAS) << MANTISSA
    least: tl.constexpr = 2.0 ** (1 - BIAS)
    low = (a * (2.0 ** (MANTISSA - 1 + BIAS)) + 12582912.0) - 12582912.0
    return tl.where(a < least, low.to(tl.int32), normal)


@triton.jit
def nearest_kernel(w, scale, codes, rows, cols, groups, MANTISSA: tl.constexpr,
                   BIAS: tl.constexpr, MAGNITUDES: tl.constexpr, TOP: tl.constexpr,
                   SCALED: tl.constexpr, GROUP: tl.constexpr, BR: tl.constexpr,
                   BC: tl.constexpr):  # fmt: skip
    """Codes uint8 of w / scale [rows, groups], or of w. GROUP: columns of a group; 0: all of a row.
    A tile is [rows, runs, columns of a run], whose scale is loaded once where it has but one."""
    RUN: tl.constexpr = 16
    row = (tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR))[:, None, None]
    run = (tl.program_id(1) * (BC // RUN) + tl.arange(0, BC // RUN))[None, :, None]
    col = run * RUN + tl.arange(0, RUN)[None, None, :]
    inside = (row < rows) & (col < cols)
    v = tl.load(w + (row * cols + col), mask=inside, other=0.0)
    if SCALED:
        if GROUP == 0:
            group = tl.zeros((1, 1, 1), tl.int32)
        elif GROUP % RUN == 0:
            group = run * RUN // GROUP
        else:
            group = col // GROUP
        there = (row < rows) & (group < groups)
        v = tl.div_rn(v, tl.load(scale + (row * groups + group), mask=there, other=1.0))
    found = magnitude_of(v, MANTISSA, BIAS, TOP)
    code = tl.where(v < 0, -found, found) + (MAGNITUDES - 1)
    tl.store(codes + (row * cols + col), code.to(tl.uint8), mask=inside)


@triton.jit
def _term(x, scale, weight, MANTISSA: tl.constexpr, BIAS: tl.constexpr, SIGN: tl.constexpr,
          TOP: tl.constexpr):  # fmt: skip
    """The weighted squared error of x on the nearest of the values times scale."""
    v = tl.div_rn(x, scale)
    near = float_of_bits(magnitude_of(v, MANTISSA, BIAS, TOP), MANTISSA, BIAS, SIGN, SIGN, 1)
    off = tl.where(v < 0, -near, near) * scale - x
    return off * off * weight


@triton.jit
def errors_kernel(w, weight, scale, starts, counts, sums, lanes, cols, groups, leaves, share,
                  MANTISSA: tl.constexpr, BIAS: tl.constexpr, SIGN: tl.constexpr,
                  TOP: tl.constexpr, EIGHTS: tl.constexpr, REST: tl.constexpr,
                  LANES: tl.constexpr):  # fmt: skip
    """sums[row, leaf] of the errors of a run of columns, in numpy's order: eight sums in turn, then
    those, then what is left over. A lane is a leaf of a row; `share` of them share a scale.
    EIGHTS: the most runs of eight in a leaf; REST: whether any column is left over."""
    lane = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    row, leaf = lane // leaves, (lane % leaves).to(tl.int32)
    alive = lane < lanes
    first = tl.load(starts + leaf, mask=alive, other=0)
    count = tl.load(counts + leaf, mask=alive, other=0)
    s = tl.load(scale + (row * groups + leaf // share), mask=alive, other=1.0)
    place = tl.arange(0, 8)
    total = tl.zeros((LANES, 8), tl.float32)
    for k in range(EIGHTS):
        col = (first + 8 * k)[:, None] + place[None, :]
        inside = (alive & (8 * k + 8 <= count))[:, None] & (place < 8)[None, :]
        x = tl.load(w + (row[:, None] * cols + col), mask=inside, other=0.0)
        by = tl.load(weight + col, mask=inside, other=0.0)
        term = _term(x, s[:, None], by, MANTISSA, BIAS, SIGN, TOP)
        total += tl.where(inside, term, 0.0)
    a, b = tl.split(tl.reshape(total, (LANES, 4, 2)))
    a, b = tl.split(tl.reshape(a + b, (LANES, 2, 2)))
    a, b = tl.split(a + b)
    found = a + b
    if REST:
        for k in range(7):
            col = first + count // 8 * 8 + k
            inside = alive & (k < count % 8)
            x = tl.load(w + (row * cols + col), mask=inside, other=0.0)
            by = tl.load(weight + col, mask=inside, other=0.0)
            term = _term(x, s, by, MANTISSA, BIAS, SIGN, TOP)
            found += tl.where(inside, term, 0.0)
    tl.store(sums + lane, found, mask=alive)
