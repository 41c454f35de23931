"""Triton kernel of `kernels.descent.descend`: codes, parameters of groups, then shared scales.

A program takes ROWS rows through all sweeps of a panel; see `sweep_kernels`. The log has, for each
group in order, the changes of its codes, then of its scale (or line), then of its zero point: PARTS
times SIZE events. A tile of columns takes them in when it is next looked at, in their order; so
what a move does to columns that are not looked at again is never computed.
"""

# mypy: ignore-errors

import triton
import triton.language as tl

from qconvert.kernels.gpu.descent_group_kernels import move_parameters, own_codes
from qconvert.kernels.gpu.descent_shared_kernels import move_all_shared
from qconvert.kernels.gpu.storing_kernels import inverse, nearest
from qconvert.kernels.gpu.sweep_kernels import column, line_of, pushed, read, replaced, write


@triton.jit
def _line(scale, offset, shared, lowest, k, stride, there, KIND: tl.constexpr):
    """Scale and offset of group k from the stored parameters."""
    a = tl.load(scale + k * stride, mask=there, other=0.0)
    b = tl.zeros(a.shape, tl.float32)
    if KIND == 2 or KIND == 3:
        a = shared * a
    if KIND == 1 or KIND == 3 or KIND == 4:
        b = tl.load(offset + k * stride, mask=there, other=0.0)
    if KIND == 3:
        b = 0.0 - lowest * b
    elif KIND == 4:
        b = 0.0 - a * b
    return a, b


@triton.jit
def _values(
    chosen, scale, offset, shared, lowest, change, stride, there, AFTER: tl.constexpr,
    KIND: tl.constexpr, COLS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`change` = the values; AFTER: less what it was."""
    for k in range(0, COLS // SIZE):
        a, b = _line(scale, offset, shared, lowest, k, stride, there, KIND)
        for start in range(k * SIZE, k * SIZE + SIZE, BLOCK):
            value = a[None, :] * read(chosen, start, stride, there, BLOCK) + b[None, :]
            if AFTER:
                value = value - read(change, start, stride, there, BLOCK)
            write(change, value, start, stride, there)


@triton.jit
def _before(
    tile, k, start, log, h, stride, there,
    COLS: tl.constexpr, SIZE: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The tile after all events of the groups before k, and the codes of k before `start`."""
    first = k * SIZE
    if PARTS == 1:
        return pushed(tile, start, log, 0, start, 0, h, stride, there, COLS)
    for run in range(0, k * PARTS + 1):
        count = tl.where(run < k * PARTS, SIZE, start - first)
        tile = pushed(
            tile, start, log, run * SIZE, count, run // PARTS * SIZE, h, stride, there, COLS
        )  # fmt: skip
    return tile


@triton.jit
def _move_codes(
    g, chosen, log, h, k, a, middles, table, stride, there,
    LOW: tl.constexpr, HIGH: tl.constexpr, STEPS: tl.constexpr,
    COLS: tl.constexpr, SIZE: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Every code of group k, in order."""
    first, last = k * SIZE, k * SIZE + SIZE
    per_scale, alive = inverse(a), tl.abs(a) > 0.0
    for start in range(first, last, BLOCK):
        slopes = read(g, start, stride, there, BLOCK)
        slopes = _before(slopes, k, start, log, h, stride, there, COLS, SIZE, PARTS)
        levels = read(chosen, start, stride, there, BLOCK)
        changes = tl.zeros(levels.shape, tl.float32)
        diagonal = tl.load(h + (start + tl.arange(0, BLOCK)) * (COLS + 1))
        over = tl.broadcast_to(tl.div_rn(1.0, diagonal)[:, None], levels.shape)
        for u in tl.static_range(BLOCK):
            level = column(levels, u)
            wanted = level - column(slopes, u) * column(over, u) * per_scale
            wanted, _ = nearest(wanted, middles, table, LOW, HIGH, STEPS)
            step = tl.where(alive, wanted - level, 0.0)
            change = a * step
            levels = replaced(levels, u, level + step)
            changes = replaced(changes, u, change)
            f = line_of(h, start + u, start, COLS, BLOCK)
            slopes = slopes + change[None, :] * f[:, None]
        write(g, slopes, start, stride, there)
        write(chosen, levels, start, stride, there)
        write(log + first * PARTS * stride, changes, start - first, stride, there)
        tl.debug_barrier()


@triton.jit
def _after(
    g, log, h, stride, there,
    COLS: tl.constexpr, SIZE: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Take into every tile what was logged since it was last looked at: the log is used up."""
    for k in range(0, COLS // SIZE):
        for start in range(k * SIZE, k * SIZE + SIZE, BLOCK):
            slopes = read(g, start, stride, there, BLOCK)
            if PARTS == 1:
                done = start + BLOCK
                slopes = pushed(
                    slopes, start, log, done, COLS - done, done, h, stride, there, COLS
                )  # fmt: skip
            else:
                for run in range(k * PARTS + PARTS - 1, COLS // SIZE * PARTS):
                    slopes = pushed(
                        slopes, start, log, run * SIZE, SIZE, run // PARTS * SIZE,
                        h, stride, there, COLS,
                    )  # fmt: skip
            write(g, slopes, start, stride, there)
    tl.debug_barrier()


@triton.jit(do_not_specialize=["rows", "sweeps"])  # or a thread would own parts of several rows
def descend(
    g,  # [COLS, rows]; overwritten
    h,  # [COLS, COLS]
    turned,  # h'
    middles,
    table,
    chosen,  # [COLS, rows]
    scale,  # [COLS / SIZE, rows]
    offset,
    d,  # [rows]
    dmin,
    change,  # [COLS, rows]; filled
    log,  # [PARTS * COLS, rows], and COLS more where scales are shared
    rows,
    sweeps,
    KIND: tl.constexpr,  # of kernels.descent.KINDS
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    STEPS: tl.constexpr,
    LOW_BITS: tl.constexpr,
    LIMIT_LOW: tl.constexpr,
    LIMIT_HIGH: tl.constexpr,
    COLS: tl.constexpr,
    SIZE: tl.constexpr,
    PARTS: tl.constexpr,  # kinds of moves of a group: 1 where parameters stay
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    SHARED: tl.constexpr = KIND == 2 or KIND == 3
    stride = rows
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = r < rows
    g, chosen, scale, offset = g + r, chosen + r, scale + r, offset + r
    change, log = change + r, log + r
    shared = tl.zeros((ROWS,), tl.float32)
    lowest = tl.zeros((ROWS,), tl.float32)
    if SHARED:
        shared = tl.load(d + r, mask=there, other=0.0)
    if KIND == 3:
        lowest = tl.load(dmin + r, mask=there, other=0.0)
    _values(
        chosen, scale, offset, shared, lowest, change, stride, there, False,
        KIND, COLS, SIZE, BLOCK,
    )  # fmt: skip
    for sweep in range(0, sweeps):
        for k in range(0, COLS // SIZE):
            a, b = _line(scale, offset, shared, lowest, k, stride, there, KIND)
            _move_codes(
                g, chosen, log, h, k, a, middles, table, stride, there,
                LOW, HIGH, STEPS, COLS, SIZE, PARTS, BLOCK,
            )  # fmt: skip
            if PARTS > 1:
                own_codes(g, log, h, k, stride, there, COLS, SIZE, PARTS, BLOCK)
                move_parameters(
                    g, chosen, log, h, turned, k, a, b, scale, offset, shared, lowest,
                    stride, there, KIND, LOW_BITS, LIMIT_LOW, LIMIT_HIGH, COLS, SIZE, PARTS, BLOCK,
                )  # fmt: skip
        more = sweep + 1 < sweeps
        if SHARED and PARTS > 1:
            _after(g, log, h, stride, there, COLS, SIZE, PARTS, BLOCK)
            shared, lowest = move_all_shared(
                g, log + PARTS * COLS * stride, chosen, scale, offset, h, turned, shared, lowest,
                more, stride, there, KIND, COLS, SIZE, BLOCK,
            )  # fmt: skip
        else:
            if more:
                _after(g, log, h, stride, there, COLS, SIZE, PARTS, BLOCK)
    if SHARED:
        tl.store(d + r, shared, mask=there)
    if KIND == 3:
        tl.store(dmin + r, lowest, mask=there)
    _values(
        chosen, scale, offset, shared, lowest, change, stride, there, True,
        KIND, COLS, SIZE, BLOCK,
    )  # fmt: skip
