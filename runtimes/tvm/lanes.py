# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, ANN202
# (TVMScript: a language of its own in Python's syntax, whose annotations are values.)
"""What the TIR kernels share: vectors of 16 float32, blocks of rows, tiles of sums."""

from __future__ import annotations

from tvm.script import tirx as T

LANES = 16  # of a vector of float32
ROWS = 16  # that one task computes
TILE = 4  # tokens, and rows, whose sums are held at once


def padded(count: int, step: int) -> int:
    return -(-count // step) * step


def vector(dtype: str, lanes: int) -> str:
    """The name of a vector's dtype."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def rounded(value, dtype: str, lanes: int = 1):
    """A float32 expression, rounded to `dtype`. bfloat16 by its bits: TVM takes a cast there and
    back for nothing (its BF16ComputeLegalize)."""
    if dtype != "bfloat16":
        return T.Cast(vector("float32", lanes), T.Cast(vector(dtype, lanes), value))

    def of(number: int):
        constant = T.uint32(number)
        return constant if lanes == 1 else T.Broadcast(constant, lanes)

    bits = T.reinterpret(vector("uint32", lanes), value)
    odd = T.bitwise_and(T.shift_right(bits, of(16)), of(1))
    nearest = T.bitwise_and(bits + of(0x7FFF) + odd, of(0xFFFF0000))
    return T.reinterpret(vector("float32", lanes), nearest)


@T.inline
def clear(acc, count):
    for at in T.unroll(count):
        for lane in T.vectorized(LANES):
            acc[at, lane] = T.float32(0)


@T.inline
def sum_lanes(acc, at):
    """acc[at, 0] becomes the sum of acc[at, 0:16]."""
    for lane in T.vectorized(8):
        acc[at, lane] = acc[at, lane] + acc[at, 8 + lane]
    for lane in T.vectorized(4):
        acc[at, lane] = acc[at, lane] + acc[at, 4 + lane]
    for lane in T.vectorized(2):
        acc[at, lane] = acc[at, lane] + acc[at, 2 + lane]
    acc[at, 0] = acc[at, 0] + acc[at, 1]


@T.inline
def multiply(x, w, acc, y, tokens, block, rows, steps):
    """y[:, block's rows] = x w^T; x [tokens, 16 * steps], padded with zeros to whole tiles."""
    for i in range((tokens + TILE - 1) // TILE):
        for n in range(ROWS // TILE):
            clear(acc, TILE * TILE)
            for k in range(steps):
                for a in T.unroll(TILE):
                    for b in T.unroll(TILE):
                        for lane in T.vectorized(LANES):
                            acc[a * TILE + b, lane] = (
                                acc[a * TILE + b, lane]
                                + x[i * TILE + a, k * LANES + lane]
                                * w[n * TILE + b, k * LANES + lane]
                            )
            for a in T.unroll(TILE):
                for b in T.unroll(TILE):
                    sum_lanes(acc, a * TILE + b)
                    if T.And(i * TILE + a < tokens, block * ROWS + n * TILE + b < rows):
                        y[i * TILE + a, block * ROWS + n * TILE + b] = acc[a * TILE + b, 0]
