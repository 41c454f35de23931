"""What sweeps over columns share: tiles of columns, pushes of a gradient, sums along a direction.

A thread owns a row of the matrix, and sums run over its columns in order. A tile is BLOCK columns
of ROWS rows in registers. A change of column j by c [rows] moves the gradient of every column i by
c * h[j, i]; such changes are logged, and reach a tile, in their order, when its turn comes.
Only loops over a tile are unrolled here; the assembler unrolls those over columns (by four, with
their loads first) in a fraction of the time that Triton takes for it.
Pointers come with the rows added, [ROWS]; `stride` is from one column to the next. BLOCK divides
whatever columns are gone over.
"""

# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def column(tile, u: tl.constexpr):
    """Column u of a tile: all others are -0, which changes no sum. Costs nothing where a thread
    owns a row."""
    i = tl.arange(0, tile.shape[0])
    return tl.sum(tl.where(i[:, None] == u, tile, -0.0), 0)


@triton.jit
def replaced(tile, u: tl.constexpr, values):
    i = tl.arange(0, tile.shape[0])
    return tl.where(i[:, None] == u, values[None, :], tile)


@triton.jit
def read(source, first, stride, there, BLOCK: tl.constexpr):
    """The tile of columns from `first`."""
    at = (first + tl.arange(0, BLOCK)) * stride
    return tl.load(source[None, :] + at[:, None], mask=there[None, :], other=0.0)


@triton.jit
def write(target, tile, first, stride, there):
    at = (first + tl.arange(0, tile.shape[0])) * stride
    tl.store(target[None, :] + at[:, None], tile, mask=there[None, :])


@triton.jit
def line_of(h, j, first, COLS: tl.constexpr, BLOCK: tl.constexpr):
    """h[j, first : first + BLOCK]."""
    return tl.load(h + j * COLS + first + tl.arange(0, BLOCK))


@triton.jit
def pushed(g, first, log, event, count, changed, h, stride, there, COLS: tl.constexpr):
    """Gradient of the tile of columns from `first` after `count` events of the log from `event` on,
    which changed the columns from `changed` on."""
    at = log + event * stride
    line = h + (changed * COLS + first)
    for _ in range(0, count):
        change = tl.load(at, mask=there, other=0.0)
        g = g + change[None, :] * tl.load(line + tl.arange(0, g.shape[0]))[:, None]
        at += stride
        line += COLS
    return g


@triton.jit
def added(total, tile):
    """Every column of the tile added to `total`, in order."""
    for u in tl.static_range(tile.shape[0]):
        total = total + column(tile, u)
    return total


@triton.jit
def along(
    p, zero, g, turned, first, stride, there,
    SIZE: tl.constexpr, COLS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(v'g, v'Hv at least TINY) of v = p - zero over SIZE columns from `first`; `turned`: H'."""
    slope = tl.zeros(there.shape, tl.float32)
    curve = tl.zeros(there.shape, tl.float32)
    i = tl.arange(0, BLOCK)
    for start in range(first, first + SIZE, BLOCK):
        cross = tl.zeros((BLOCK, there.shape[0]), tl.float32)  # of a column with those before it
        for j in range(first, start):
            v = tl.load(p + j * stride, mask=there, other=0.0) - zero
            cross = cross + line_of(turned, j, start, COLS, BLOCK)[:, None] * v[None, :]
        for j in range(start, start + BLOCK):
            v = tl.load(p + j * stride, mask=there, other=0.0) - zero
            more = cross + line_of(turned, j, start, COLS, BLOCK)[:, None] * v[None, :]
            cross = tl.where(i[:, None] > j - start, more, cross)
        tile = read(p, start, stride, there, BLOCK) - zero[None, :]
        own = tl.load(turned + (start + i) * (COLS + 1))
        slope = added(slope, tile * read(g, start, stride, there, BLOCK))
        curve = added(curve, tile * (cross + cross + own[:, None] * tile))
    return slope, tl.where(curve > 1e-30, curve, 1e-30)


@triton.jit
def across(
    levels, g, turned, first, stride, there,
    SIZE: tl.constexpr, COLS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(1'g, levels' H 1, 1' H 1) over SIZE columns from `first`, of the moments inside them."""
    slope = tl.zeros(there.shape, tl.float32)
    mixed = tl.zeros(there.shape, tl.float32)
    total = tl.zeros(there.shape, tl.float32)
    for start in range(first, first + SIZE, BLOCK):
        sums = tl.zeros((BLOCK, there.shape[0]), tl.float32)
        for j in range(first, first + SIZE):
            sums = sums + line_of(turned, j, start, COLS, BLOCK)[:, None]
        slope = added(slope, read(g, start, stride, there, BLOCK))
        mixed = added(mixed, read(levels, start, stride, there, BLOCK) * sums)
        total = added(total, sums)
    return slope, mixed, total


@triton.jit
def lowers(step, slope, curve):
    """Whether a step along a direction lowers the error."""
    return 2.0 * step * slope + step * step * curve < 0.0
