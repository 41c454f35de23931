"""Scales and minima that all groups of a panel share, in a descent."""

# mypy: ignore-errors

import triton
import triton.language as tl

from qconvert.kernels.gpu.storing_kernels import half
from qconvert.kernels.gpu.sweep_kernels import along, lowers, pushed, read, write


@triton.jit
def _multiplied(
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
def _lowered(p, offset, stride, there, COLS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """p: less the whole minima of the groups."""
    for k in range(0, COLS // SIZE):
        m = 0.0 - tl.load(offset + k * stride, mask=there, other=0.0)
        tile = tl.broadcast_to(m[None, :], (BLOCK, m.shape[0]))
        for start in range(k * SIZE, k * SIZE + SIZE, BLOCK):
            write(p, tile, start, stride, there)
    tl.debug_barrier()


@triton.jit
def _push_everywhere(g, log, h, stride, there, COLS: tl.constexpr, BLOCK: tl.constexpr):
    """Take one event of every column into every tile."""
    for start in range(0, COLS, BLOCK):
        slopes = read(g, start, stride, there, BLOCK)
        slopes = pushed(slopes, start, log, 0, COLS, 0, h, stride, there, COLS)
        write(g, slopes, start, stride, there)
    tl.debug_barrier()


@triton.jit
def _move_shared(
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


@triton.jit
def move_all_shared(
    g, p, chosen, scale, offset, h, turned, shared, lowest, more, stride, there,
    KIND: tl.constexpr, COLS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The shared scale, then (kind 3) the shared minimum: both new. `p` [COLS, rows] is for their
    events; those of the last reach the gradient only if there is `more` to come."""
    TURNS: tl.constexpr = 2 if KIND == 3 else 1
    for turn in range(TURNS):  # one code for both
        if turn == 0:
            _multiplied(p, chosen, scale, stride, there, COLS, SIZE, BLOCK)
        else:
            _lowered(p, offset, stride, there, COLS, SIZE, BLOCK)
        now = tl.where(turn == 0, shared, lowest)
        now = _move_shared(g, p, turned, now, stride, there, KIND == 3, COLS, BLOCK)
        shared = tl.where(turn == 0, now, shared)
        lowest = tl.where(turn == 0, lowest, now)
        if more | (turn + 1 < TURNS):
            _push_everywhere(g, p, h, stride, there, COLS, BLOCK)
    return shared, lowest
