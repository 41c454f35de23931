"""Triton kernels of `kernels.rotation`: rows, or parts of rows, that fit into registers."""

# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def _butterflies(v, OUTER: tl.constexpr, LOG: tl.constexpr, INNER: tl.constexpr):
    """v, of OUTER * 2^LOG * INNER numbers, times Hadamard's matrix along its middle axis. Each
    stage takes the last bit of the index on that axis and puts it first, so that all are alike and
    the last leaves them in order: stages whose bits a thread holds move nothing (Pease 1968)."""
    for _ in tl.static_range(LOG):
        v = tl.reshape(v, (OUTER, 1 << (LOG - 1), 2, INNER))
        left, right = tl.split(tl.permute(v, (0, 1, 3, 2)))
        v = tl.permute(tl.join(left + right, left - right), (0, 3, 1, 2))
    return v


@triton.jit(do_not_specialize=["chunks"])
def rotate_rows(
    x,  # [chunks << LOG]
    signs,  # float32 [PARTS << LOG]
    out,
    chunks,
    scale,
    ROWS: tl.constexpr,  # chunks of a program
    LOG: tl.constexpr,  # a chunk is 2^LOG numbers
    PARTS: tl.constexpr,  # chunks of a vector; 1 where ROWS is more
):
    """Each chunk times its signs and Hadamard's matrix of its size."""
    first = tl.program_id(0)
    x += first.to(tl.int64) * (ROWS << LOG)
    out += first.to(tl.int64) * (ROWS << LOG)
    signs += (first % PARTS) << LOG
    inside = tl.arange(0, ROWS << LOG)
    there = first * ROWS + inside // (1 << LOG) < chunks
    v = tl.load(x + inside, mask=there, other=0.0).to(tl.float32)
    v *= tl.load(signs + inside % (1 << LOG))
    v = tl.reshape(_butterflies(v, ROWS, LOG, 1), (ROWS << LOG,))
    tl.store(out + inside, v * scale, mask=there)


@triton.jit(do_not_specialize=["chunks"])
def rotate_blocks(
    x,  # [(chunks << LOG) * M]
    signs,  # float32 [(PARTS << LOG) * M]
    small,  # float32 [M, M]
    out,
    chunks,
    scale,
    ROWS: tl.constexpr,
    LOG: tl.constexpr,  # a chunk is 2^LOG vectors of M numbers
    PARTS: tl.constexpr,
    M: tl.constexpr,
    WIDE: tl.constexpr,  # M, up to a power of two
    STEP: tl.constexpr,  # numbers of a vector that one product takes
):
    """The same, where each vector of M numbers is multiplied by `small` before."""
    program = tl.program_id(0)
    x += program.to(tl.int64) * ((ROWS << LOG) * M)
    out += program.to(tl.int64) * ((ROWS << LOG) * M)
    signs += (program % PARTS) * (M << LOG)
    inside = tl.arange(0, ROWS << LOG)[:, None]
    there = program * ROWS + inside // (1 << LOG) < chunks
    col = tl.arange(0, WIDE)[None, :]
    v = tl.zeros((ROWS << LOG, WIDE), dtype=tl.float32)
    for first in range(0, M, STEP):
        k = first + tl.arange(0, STEP)
        across, down = k[None, :], k[:, None]
        a = tl.load(x + inside * M + across, mask=there & (across < M), other=0.0).to(tl.float32)
        a *= tl.load(signs + inside % (1 << LOG) * M + across, mask=across < M, other=0.0)
        b = tl.load(small + down * M + col, mask=(down < M) & (col < M), other=0.0)
        v = tl.dot(a, b, v, input_precision="tf32x3")
    v = tl.reshape(_butterflies(v, ROWS, LOG, WIDE), (ROWS << LOG, WIDE))
    tl.store(out + inside * M + col, v * scale, mask=there & (col < M))


@triton.jit
def join_chunks(
    values,  # float32 [vectors, 2^LOG, size]
    out,
    size,
    scale,
    LOG: tl.constexpr,
    COLS: tl.constexpr,  # numbers of each chunk that a program takes
):
    """Hadamard's matrix across the 2^LOG chunks of a vector."""
    blocks = tl.cdiv(size, COLS)
    begin = (tl.program_id(0) // blocks).to(tl.int64) * size << LOG
    col = tl.program_id(0) % blocks * COLS + tl.arange(0, COLS)[None, :]
    at = tl.arange(0, 1 << LOG)[:, None] * size + col
    v = tl.load(values + begin + at, mask=col < size, other=0.0)
    v = tl.reshape(_butterflies(v, 1, LOG, COLS), (1 << LOG, COLS))
    tl.store(out + begin + at, v * scale, mask=col < size)
