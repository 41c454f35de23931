"""Triton kernel of `kernels.descent.feed_back`.

A thread owns a row. BLOCK columns of ROWS rows are in registers at a time; the errors of all the
columns before them are taken out first, in the order of the columns, from what this program stored.
So a panel may be of any width, and no column waits for another thread; barriers stand between
blocks. The loops over a block are unrolled: the selection of a column costs nothing then. Loops
over columns are not: the assembler unrolls them, for a fraction of the time.

A panel of C columns costs C * C multiplications and subtractions of a row, beside its C roundings.
"""

# mypy: ignore-errors

import triton
import triton.language as tl

from qconvert.kernels.gpu.storing_kernels import inverse, nearest
from qconvert.kernels.gpu.sweep_kernels import column


@triton.jit(do_not_specialize=["rows"])  # or a thread would own parts of several rows
def feed_back(
    w,  # [COLS, rows]
    factor,  # [COLS, COLS]
    scale,  # [COLS / SIZE, rows]
    offset,
    middles,
    table,
    codes,  # uint8 [COLS, rows]
    errors,  # [COLS, rows]
    rows,
    COLS: tl.constexpr,
    SIZE: tl.constexpr,
    SHIFTED: tl.constexpr,  # there are offsets
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    stride = rows.to(tl.int64)
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = r < rows
    i = tl.arange(0, BLOCK)
    for start in range(0, COLS, BLOCK):
        inside = start + i < COLS
        mask = inside[:, None] & there[None, :]
        at = (start + i)[:, None] * stride + r[None, :]
        tile = tl.load(w + at, mask=mask, other=0.0)
        for j in range(0, start):
            error = tl.load(errors + j * stride + r, mask=there, other=0.0)
            f = tl.load(factor + j * COLS + start + i, mask=inside, other=0.0)
            tile = tile - error[None, :] * f[:, None]
        group = ((start + i) // SIZE)[:, None] * stride + r[None, :]
        a = tl.load(scale + group, mask=mask, other=0.0)
        b = tl.zeros(a.shape, tl.float32)
        if SHIFTED:
            b = tl.load(offset + group, mask=mask, other=0.0)
        per_scale = inverse(a)
        chosen = tl.zeros((BLOCK, ROWS), tl.float32)
        for u in tl.static_range(BLOCK):
            diagonal = tl.load(factor + (start + u) * (COLS + 1), mask=start + u < COLS, other=1.0)
            v, shift = column(tile, u), column(b, u)
            wanted = (v - shift) * column(per_scale, u)
            level, code = nearest(wanted, middles, table, LOW, HIGH, STEPS)
            error = (v - (column(a, u) * level + shift)) * tl.div_rn(1.0, diagonal)
            f = tl.load(
                factor + (start + u) * COLS + start + i, mask=inside & (start + u < COLS), other=0.0
            )
            after = tl.where(i[:, None] > u, tile - error[None, :] * f[:, None], tile)
            tile = tl.where(i[:, None] == u, error[None, :], after)
            chosen = tl.where(i[:, None] == u, code[None, :], chosen)
        tl.store(errors + at, tile, mask=mask)
        tl.store(codes + at, chosen.to(tl.uint8), mask=mask)
        tl.debug_barrier()
