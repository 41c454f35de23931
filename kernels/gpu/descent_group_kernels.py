"""Parameters of one group in a descent: scale, scale and offset, or scale and zero point.

The events of group k begin at k * PARTS * SIZE of the log, codes first; see `descent_kernels`.
"""

# mypy: ignore-errors

import triton
import triton.language as tl

from qconvert.kernels.gpu.storing_kernels import inverse, stored, whole
from qconvert.kernels.gpu.sweep_kernels import across, along, lowers, pushed, read, write


@triton.jit
def own_codes(
    g, log, h, k, stride, there,
    COLS: tl.constexpr, SIZE: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Take into the group's gradient the codes of its own columns that moved after it was read."""
    first, last = k * SIZE, k * SIZE + SIZE
    for start in range(first, last - BLOCK, BLOCK):
        slopes = read(g, start, stride, there, BLOCK)
        done = start + BLOCK
        slopes = pushed(
            slopes, start, log, first * PARTS + done - first, last - done, done,
            h, stride, there, COLS,
        )  # fmt: skip
        write(g, slopes, start, stride, there)
    tl.debug_barrier()


@triton.jit
def _move_scale(
    g, chosen, log, turned, k, a, s, zero, shared, stride, there,
    KIND: tl.constexpr, LOW_BITS: tl.constexpr, LIMIT_LOW: tl.constexpr, LIMIT_HIGH: tl.constexpr,
    COLS: tl.constexpr, SIZE: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(new scale, what is stored of it) of group k alone, values a * (level - zero)."""
    first = k * SIZE
    slope, curve = along(chosen, zero, g, turned, first, stride, there, SIZE, COLS, BLOCK)
    wanted = a - tl.div_rn(slope, curve)
    if KIND == 2:
        kept = whole(wanted * inverse(shared), LIMIT_LOW, LIMIT_HIGH)
        new = shared * kept
    else:
        kept = stored(wanted, LOW_BITS)
        new = kept
    step = new - a
    good = lowers(step, slope, curve)
    if KIND == 4:
        good = good & (new > 0.0)
    step = tl.where(good, step, 0.0)
    to = log + (first * PARTS + SIZE) * stride
    for start in range(0, SIZE, BLOCK):
        p = read(chosen, first + start, stride, there, BLOCK) - zero[None, :]
        write(to, step[None, :] * p, start, stride, there)
    tl.debug_barrier()
    return tl.where(good, new, a), tl.where(good, kept, s)


@triton.jit
def _move_zero(
    g, chosen, log, h, turned, k, a, zero, stride, there,
    LIMIT_LOW: tl.constexpr, LIMIT_HIGH: tl.constexpr,
    COLS: tl.constexpr, SIZE: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The whole zero point of group k alone, after the move of its scale."""
    first, last = k * SIZE, k * SIZE + SIZE
    event = first * PARTS + SIZE
    for start in range(first, last, BLOCK):
        slopes = read(g, start, stride, there, BLOCK)
        slopes = pushed(slopes, start, log, event, SIZE, first, h, stride, there, COLS)
        write(g, slopes, start, stride, there)
    tl.debug_barrier()
    slope, _, total = across(chosen, g, turned, first, stride, there, SIZE, COLS, BLOCK)
    slope = (0.0 - a) * slope
    curve = a * a * total
    curve = tl.where(curve > 1e-30, curve, 1e-30)
    step = whole(zero - tl.div_rn(slope, curve), LIMIT_LOW, LIMIT_HIGH) - zero
    step = tl.where(lowers(step, slope, curve), step, 0.0)
    change = tl.broadcast_to(((0.0 - a) * step)[None, :], (BLOCK, a.shape[0]))
    for start in range(0, SIZE, BLOCK):
        write(log + (event + SIZE) * stride, change, start, stride, there)
    tl.debug_barrier()
    return zero + step


@triton.jit
def _move_line(
    g, chosen, log, turned, k, a, b, s, m, shared, lowest, stride, there,
    KIND: tl.constexpr, LOW_BITS: tl.constexpr, LIMIT_HIGH: tl.constexpr,
    COLS: tl.constexpr, SIZE: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What is stored of the scale and offset of group k, moved together."""
    first = k * SIZE
    none = tl.zeros(a.shape, tl.float32)
    slope_a, curve_a = along(chosen, none, g, turned, first, stride, there, SIZE, COLS, BLOCK)
    slope_b, mixed, curve_b = across(chosen, g, turned, first, stride, there, SIZE, COLS, BLOCK)
    curve_b = tl.where(curve_b > 1e-30, curve_b, 1e-30)
    det = curve_a * curve_b - mixed * mixed
    solvable = det > 1e-30
    joint = tl.div_rn(mixed * slope_b - curve_b * slope_a, tl.where(solvable, det, 1.0))
    wanted = a + tl.where(solvable, joint, 0.0 - tl.div_rn(slope_a, curve_a))
    best, step_a, step_b = none, none, none
    for near in tl.static_range(3 if KIND == 3 else 1):
        if KIND == 3:
            at = whole(wanted * inverse(shared), -4194304.0, 4194304.0) + (near - 1.0)
            kept = whole(at, 0.0, LIMIT_HIGH)
            new_a = shared * kept
        else:
            kept = stored(wanted, LOW_BITS)
            new_a = kept
        move_a = new_a - a
        wanted_b = b - tl.div_rn(slope_b + mixed * move_a, curve_b)
        if KIND == 3:
            low = whole((0.0 - wanted_b) * inverse(lowest), 0.0, LIMIT_HIGH)
            new_b = 0.0 - lowest * low
        else:
            low = stored(wanted_b, LOW_BITS)
            new_b = low
        move_b = new_b - b
        error = 2.0 * (move_a * slope_a + move_b * slope_b) + move_a * move_a * curve_a
        error = error + 2.0 * move_a * move_b * mixed + move_b * move_b * curve_b
        better = error < best
        best = tl.where(better, error, best)
        step_a, step_b = tl.where(better, move_a, step_a), tl.where(better, move_b, step_b)
        s, m = tl.where(better, kept, s), tl.where(better, low, m)
    to = log + (first * PARTS + SIZE) * stride
    for start in range(0, SIZE, BLOCK):
        p = read(chosen, first + start, stride, there, BLOCK)
        write(to, step_a[None, :] * p + step_b[None, :], start, stride, there)
    tl.debug_barrier()
    return s, m


@triton.jit
def move_parameters(
    g, chosen, log, h, turned, k, a, b, scale, offset, shared, lowest, stride, there,
    KIND: tl.constexpr, LOW_BITS: tl.constexpr, LIMIT_LOW: tl.constexpr, LIMIT_HIGH: tl.constexpr,
    COLS: tl.constexpr, SIZE: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What is stored of group k, in place."""
    s = tl.load(scale + k * stride, mask=there, other=0.0)
    m = tl.zeros(s.shape, tl.float32)
    if KIND == 1 or KIND == 3 or KIND == 4:
        m = tl.load(offset + k * stride, mask=there, other=0.0)
    if KIND == 1 or KIND == 3:
        s, m = _move_line(
            g, chosen, log, turned, k, a, b, s, m, shared, lowest, stride, there,
            KIND, LOW_BITS, LIMIT_HIGH, COLS, SIZE, PARTS, BLOCK,
        )  # fmt: skip
        tl.store(offset + k * stride, m, mask=there)
    else:
        a, s = _move_scale(
            g, chosen, log, turned, k, a, s, m, shared, stride, there,
            KIND, LOW_BITS, LIMIT_LOW, LIMIT_HIGH, COLS, SIZE, PARTS, BLOCK,
        )  # fmt: skip
        if KIND == 4:
            m = _move_zero(
                g, chosen, log, h, turned, k, a, m, stride, there,
                LIMIT_LOW, LIMIT_HIGH, COLS, SIZE, PARTS, BLOCK,
            )  # fmt: skip
            tl.store(offset + k * stride, m, mask=there)
    tl.store(scale + k * stride, s, mask=there)
    tl.debug_barrier()
