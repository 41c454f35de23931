"""How the kernels that choose codes round: to whole numbers, to tables, to what a file stores.

The same bits as the plain bodies (of a zero, the sign aside), under the interpreter too, which has
no `rint`. No product and sum of these may be contracted: launch with `fused=False`.
"""

# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def clamped(v, LOW: tl.constexpr, HIGH: tl.constexpr):
    v = tl.where(v < HIGH, v, HIGH)
    return tl.where(v > LOW, v, LOW)


@triton.jit
def whole(v, LOW: tl.constexpr, HIGH: tl.constexpr):
    """The whole number in LOW..HIGH nearest to v, ties to even. The limits are whole and within
    +-2^22, so that the sum has no digits behind the point, and clamping first changes nothing."""
    return (clamped(v, LOW, HIGH) + 12582912.0) - 12582912.0


@triton.jit
def inverse(d):
    """1 / d, or 0 where d is 0."""
    alive = tl.abs(d) > 0.0
    safe = tl.where(alive, d, 1.0)
    return tl.where(alive, tl.div_rn(1.0, safe), 0.0)


@triton.jit
def place(v, middles, STEPS: tl.constexpr):
    """How many of the ascending `middles` lie below v, by halving; float32 [2^STEPS - 1], what is
    not used infinite."""
    found = tl.zeros(v.shape, tl.int32)
    for k in range(STEPS):
        step = (1 << STEPS) >> (k + 1)
        above = v > tl.load(middles + (found + (step - 1)))
        found = tl.where(above, found + step, found)
    return found


@triton.jit
def nearest(v, middles, table, LOW: tl.constexpr, HIGH: tl.constexpr, STEPS: tl.constexpr):
    """(level nearest to v, its code as float32). STEPS 0: levels are whole numbers LOW..HIGH; else
    those of `table`, float32 [2^STEPS]."""
    if STEPS == 0:
        level = whole(v, LOW, HIGH)
        return level, level - LOW
    at = place(v, middles, STEPS)
    return tl.load(table + at), at.to(tl.float32)


@triton.jit
def half(v):
    return v.to(tl.float16).to(tl.float32)


@triton.jit
def shortened(v, LOW_BITS: tl.constexpr):
    """Without its LOW_BITS lowest bits, to nearest even; 0 for what is tiny."""
    bits = v.to(tl.int32, bitcast=True)
    odd = (bits >> LOW_BITS) & 1
    bits = (bits + odd + ((1 << (LOW_BITS - 1)) - 1)) & (-(1 << LOW_BITS))
    return tl.where(tl.abs(v) > 1e-30, bits.to(tl.float32, bitcast=True), 0.0)


@triton.jit
def stored(v, LOW_BITS: tl.constexpr):
    """What a file keeps of a scale, as `kernels.scales.SHORTENED` says."""
    if LOW_BITS == 0:
        return half(v)
    elif LOW_BITS < 0:
        return half(shortened(half(v), -LOW_BITS))
    else:
        return shortened(v, LOW_BITS)
