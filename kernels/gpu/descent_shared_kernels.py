"""Scales and minima that all groups of a panel share, in a descent."""

# mypy: ignore-errors

import triton
import triton.language as tl

from qconvert.kernels.gpu.storing_kernels import half
from qconvert.kernels.gpu.sweep_kernels import along, lowers, pushed, read, write


@triton.jit
def multiplied(
    p, chosen, scale, stride, there, COLS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr
):
    """p: the levels times the whole scales of their groups."""
    for k in range(0, COLS // SIZE):
        s = tl.load(scale + k * stride, mask=there, other=0.0)
        for start in range(k * SIZE, k * SIZE + SIZE, BLOCK):
            tile = s[None, :] * read(chosen, start, stride, there, BLOCK)
            write(p, tile, start, stride, there)
    tl.debug_barrier()


@triton.jit
def lowered(p, offset, stride, there, COLS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """p: less the whole minima of the groups."""
    for k in range(0, COLS // SIZE):
        m = 0.0 - tl.load(offset + k * stride, mask=there, other=0.0)
        tile = tl.broadcast_to(m[None, :], (BLOCK, m.shape[0]))
        for start in range(k * SIZE, k * SIZE + SIZE, BLOCK):
            write(p, tile, start, stride, there)
    tl.debug_barrier()


@triton.jit
def push_everywhere(g, log, h, stride, there, COLS: tl.constexpr, BLOCK: tl.constexpr):
    """Take one event of every column into every tile."""
    for start in range(0, COLS, BLOCK):
        slopes = read(g, start, stride, there, BLOCK)
        slopes = pushed(slopes, start, log, 0, COLS, 0, h, stride, there, COLS)
        write(g, slopes, start, stride, there)
    tl.debug_barrier()


@triton.jit
def move_shared(
    g, p, turned, shared, stride, there, SIGN: tl.constexpr, COLS: tl.constexpr, BLOCK: tl.constexpr
):
    """The scale (or minimum) that all groups share. `p`, what it multiplies, becomes the events."""
    none = tl.zeros(shared.shape, tl.float32)
    slope, curve = along(p, none, g, turned, 0, stride, there, COLS, COLS, BLOCK)
    new = half(shared - tl.div_rn(slope, curve))
    good = lowers(new - shared, slope, curve) & (tl.abs(new) > 0.0)
    if SIGN:
        good = good & (new > 0.0)
    step = tl.where(good, new - shared, 0.0)
    for start in range(0, COLS, BLOCK):
        moved = step[None, :] * read(p, start, stride, there, BLOCK)
        write(p, moved, start, stride, there)
    tl.debug_barrier()
    return tl.where(good, new, shared)
