# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, ANN202
# (TVMScript: a language of its own in Python's syntax, whose annotations are values.)
"""Matrix products with stored weights, in TIR: decode and multiply, in float32.

A code becomes (code - middle) * scale, rounded to the model's dtype, as MLC decodes it. Lanes of a
vector hold the same code of 16 consecutive words, so no code moves between lanes: inputs are laid
out to fit, position j * words + w for code j of word w. Columns beyond the row's end meet zeros.

`vector` takes one token: memory-bound, a row of codes is read once and never written out.
`matrix` takes any number: a block of rows is decoded once for all tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.script import tirx as T

from qconvert.runtimes.tvm.schemes import Scheme

LANES = 16  # of a vector of float32
ROWS = 16  # that one task computes
TILE = 4  # tokens, and rows, whose sums are held at once


@dataclass(frozen=True, slots=True)
class Coded:
    """A matrix [rows, columns] of codes."""

    rows: int
    columns: int
    scheme: Scheme
    exact: bool  # no product of a code and a scale needs rounding, in any row

    @property
    def groups(self) -> int:
        return self.scheme.groups(self.columns)

    @property
    def words(self) -> int:
        return self.scheme.words(self.columns)

    @property
    def wide(self) -> int:
        """Columns with the padding of the last group."""
        return self.words * self.scheme.per_word


def _padded(count: int, step: int) -> int:
    return -(-count // step) * step


def rounded(value, dtype: str):
    """A float32 expression, rounded to `dtype`. bfloat16 by its bits: TVM takes a cast there and
    back for nothing (its BF16ComputeLegalize)."""
    if dtype != "bfloat16":
        return T.Cast("float32", T.Cast(dtype, value))
    bits = T.reinterpret("uint32", value)
    odd = T.bitwise_and(T.shift_right(bits, T.uint32(16)), T.uint32(1))
    return T.reinterpret(
        "float32", T.bitwise_and(bits + T.uint32(0x7FFF) + odd, T.uint32(0xFFFF0000))
    )


@T.inline
def _sum_lanes(acc, at):
    """acc[at, 0] becomes the sum of acc[at, 0:16]."""
    for lane in T.vectorized(8):
        acc[at, lane] = acc[at, lane] + acc[at, 8 + lane]
    for lane in T.vectorized(4):
        acc[at, lane] = acc[at, lane] + acc[at, 4 + lane]
    for lane in T.vectorized(2):
        acc[at, lane] = acc[at, lane] + acc[at, 2 + lane]
    acc[at, 0] = acc[at, 0] + acc[at, 1]


@T.inline
def _clear(acc, count):
    for at in T.unroll(count):
        for lane in T.vectorized(LANES):
            acc[at, lane] = T.float32(0)


def coded_vector(matrix: Coded):
    """y [1, rows] of x [1, columns].

    Where products are exact, the sum over a word's codes is scaled, in place of every weight, and
    the middle is taken off by the sum of the inputs: the same up to float32 rounding.
    """
    N, K, dtype = matrix.rows, matrix.columns, matrix.scheme.dtype
    W, G, P = matrix.words, matrix.groups, matrix.scheme.per_word
    BITS, MASK, MIDDLE = matrix.scheme.bits, matrix.scheme.mask, matrix.scheme.middle
    EXACT, SHARE = matrix.exact, W // G
    FULL, TAIL = W // LANES, W % LANES
    TASKS = -(-N // ROWS)

    def code(word, j):
        shifted = T.shift_right(word, T.Cast("uint32", j * BITS))
        return T.Cast("float32", T.Cast("int32", T.bitwise_and(shifted, T.uint32(MASK))))

    @T.inline
    def step(q, row, first, count, spread, total, scales, acc, part):
        if EXACT:
            for lane in T.vectorized(count):
                part[0, lane] = total[first + lane]
            for lane in T.vectorized(count):
                part[1, lane] = T.float32(0)
            for j in T.unroll(P):
                for lane in T.vectorized(count):
                    part[j % 2, lane] = (
                        part[j % 2, lane] + code(q[row, first + lane], j) * spread[j, first + lane]
                    )
            for lane in T.vectorized(count):
                acc[0, lane] = acc[0, lane] + (part[0, lane] + part[1, lane]) * scales[first + lane]
        else:
            for j in T.unroll(P):
                for lane in T.vectorized(count):
                    part[j % 2, lane] = (
                        code(q[row, first + lane], j) - T.float32(MIDDLE)
                    ) * scales[first + lane]
                for lane in T.vectorized(count):
                    acc[j % 2, lane] = (
                        acc[j % 2, lane]
                        + rounded(part[j % 2, lane], dtype) * spread[j, first + lane]
                    )

    @T.prim_func(private=True, s_tir=True)
    def kernel(
        x: T.Buffer((1, K), "float32"),
        q: T.Buffer((N, W), "uint32"),
        s: T.Buffer((N, G), dtype),
        y: T.Buffer((1, N), "float32"),
    ):
        T.func_attr({"op_pattern": 8, "tirx.noalias": True})
        spread = T.sblock_alloc_buffer((P, W), "float32")
        total = T.sblock_alloc_buffer((W,), "float32")
        for w in range(W):
            total[w] = T.float32(0)
            for j in T.unroll(P):
                spread[j, w] = T.if_then_else(w * P + j < K, x[0, w * P + j], T.float32(0))
                total[w] = total[w] - spread[j, w] * T.float32(MIDDLE)
        for task in T.parallel(TASKS):
            with T.sblock("rows"):
                block = T.axis.spatial(TASKS, task)
                T.reads()
                T.writes()
                scales = T.sblock_alloc_buffer((W,), "float32", scope="local")
                acc = T.sblock_alloc_buffer((2, LANES), "float32", scope="local")
                part = T.sblock_alloc_buffer((2, LANES), "float32", scope="local")
                for r in range(T.min(ROWS, N - block * ROWS)):
                    for g in range(G):
                        for lane in T.vectorized(SHARE):
                            scales[g * SHARE + lane] = T.Cast("float32", s[block * ROWS + r, g])
                    _clear(acc, 2)
                    for c in range(FULL):
                        step(
                            q, block * ROWS + r, c * LANES, LANES, spread, total, scales, acc, part
                        )
                    if TAIL > 0:
                        step(
                            q,
                            block * ROWS + r,
                            FULL * LANES,
                            TAIL,
                            spread,
                            total,
                            scales,
                            acc,
                            part,
                        )
                    for lane in T.vectorized(LANES):
                        acc[0, lane] = acc[0, lane] + acc[1, lane]
                    _sum_lanes(acc, 0)
                    y[0, block * ROWS + r] = acc[0, 0]

    return kernel


@T.inline
def _multiply(x, w, acc, y, tokens, block, rows, steps):
    """y[:, block's rows] = x w^T; x [tokens, 16 * steps], padded with zeros to whole tiles."""
    for i in range((tokens + TILE - 1) // TILE):
        for n in range(ROWS // TILE):
            _clear(acc, TILE * TILE)
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
                    _sum_lanes(acc, a * TILE + b)
                    if T.And(i * TILE + a < tokens, block * ROWS + n * TILE + b < rows):
                        y[i * TILE + a, block * ROWS + n * TILE + b] = acc[a * TILE + b, 0]


def coded_matrix(matrix: Coded):
    """y [tokens, rows] of x [tokens, columns], every weight rounded as MLC rounds it."""
    N, K, dtype = matrix.rows, matrix.columns, matrix.scheme.dtype
    W, G, P = matrix.words, matrix.groups, matrix.scheme.per_word
    BITS, MASK, MIDDLE = matrix.scheme.bits, matrix.scheme.mask, matrix.scheme.middle
    SHARE, WIDE = W // G, matrix.wide
    LONG = _padded(WIDE, LANES)
    TASKS = -(-N // ROWS)

    def code(word, j):
        shifted = T.shift_right(word, T.Cast("uint32", j * BITS))
        return T.Cast("float32", T.Cast("int32", T.bitwise_and(shifted, T.uint32(MASK))))

    @T.prim_func(private=True, s_tir=True)
    def kernel(
        px: T.handle, q: T.Buffer((N, W), "uint32"), s: T.Buffer((N, G), dtype), py: T.handle
    ):
        T.func_attr({"op_pattern": 8, "tirx.noalias": True})
        tokens = T.int64()
        x = T.match_buffer(px, (tokens, K), "float32")
        y = T.match_buffer(py, (tokens, N), "float32")
        spread = T.sblock_alloc_buffer(((tokens + TILE - 1) // TILE * TILE, LONG), "float32")
        for i in T.parallel((tokens + TILE - 1) // TILE * TILE):
            for p in range(LONG):
                spread[i, p] = T.if_then_else(
                    T.And(T.And(i < tokens, p < WIDE), p % W * P + p // W < K),
                    x[i, p % W * P + p // W],
                    T.float32(0),
                )
        for task in T.parallel(TASKS):
            with T.sblock("rows"):
                block = T.axis.spatial(TASKS, task)
                T.reads()
                T.writes()
                weights = T.sblock_alloc_buffer((ROWS, LONG), "float32", scope="local")
                acc = T.sblock_alloc_buffer((TILE * TILE, LANES), "float32", scope="local")
                for r in range(ROWS):
                    for g in range(G):
                        for j in T.unroll(P):
                            for lane in T.vectorized(SHARE):
                                weights[r, j * W + g * SHARE + lane] = (
                                    code(q[T.min(block * ROWS + r, N - 1), g * SHARE + lane], j)
                                    - T.float32(MIDDLE)
                                ) * T.Cast("float32", s[T.min(block * ROWS + r, N - 1), g])
                    for p in range(LONG):
                        weights[r, p] = T.if_then_else(
                            p < WIDE,
                            rounded(weights[r, p], dtype),
                            T.float32(0),
                        )
                _multiply(spread, weights, acc, y, tokens, block, N, LONG // LANES)

    return kernel


def plain_vector(rows: int, columns: int, dtype: str):
    """y [1, rows] of x [1, columns] and a matrix as it is."""
    N, K = rows, columns
    PAIRS, REST = K // (2 * LANES), K % (2 * LANES)
    TASKS = -(-N // ROWS)

    @T.prim_func(private=True, s_tir=True)
    def kernel(
        x: T.Buffer((1, K), "float32"), w: T.Buffer((N, K), dtype), y: T.Buffer((1, N), "float32")
    ):
        T.func_attr({"op_pattern": 8, "tirx.noalias": True})
        for task in T.parallel(TASKS):
            with T.sblock("rows"):
                block = T.axis.spatial(TASKS, task)
                T.reads()
                T.writes()
                acc = T.sblock_alloc_buffer((2, LANES), "float32", scope="local")
                for r in range(T.min(ROWS, N - block * ROWS)):
                    _clear(acc, 2)
                    for c in range(PAIRS):
                        for a in T.unroll(2):
                            for lane in T.vectorized(LANES):
                                acc[a, lane] = (
                                    acc[a, lane]
                                    + T.Cast(
                                        "float32", w[block * ROWS + r, (c * 2 + a) * LANES + lane]
                                    )
                                    * x[0, (c * 2 + a) * LANES + lane]
                                )
                    for lane in T.vectorized(LANES):
                        acc[0, lane] = acc[0, lane] + acc[1, lane]
                    _sum_lanes(acc, 0)
                    for k in range(REST):
                        acc[0, 0] = (
                            acc[0, 0]
                            + T.Cast("float32", w[block * ROWS + r, K - REST + k])
                            * x[0, K - REST + k]
                        )
                    y[0, block * ROWS + r] = acc[0, 0]

    return kernel


def plain_matrix(rows: int, columns: int, dtype: str):
    """y [tokens, rows] of x [tokens, columns] and a matrix as it is."""
    N, K = rows, columns
    LONG = _padded(K, LANES)
    TASKS = -(-N // ROWS)

    @T.prim_func(private=True, s_tir=True)
    def kernel(px: T.handle, w: T.Buffer((N, K), dtype), py: T.handle):
        T.func_attr({"op_pattern": 8, "tirx.noalias": True})
        tokens = T.int64()
        x = T.match_buffer(px, (tokens, K), "float32")
        y = T.match_buffer(py, (tokens, N), "float32")
        padded = T.sblock_alloc_buffer(((tokens + TILE - 1) // TILE * TILE, LONG), "float32")
        for i in T.parallel((tokens + TILE - 1) // TILE * TILE):
            for p in range(LONG):
                padded[i, p] = T.if_then_else(T.And(i < tokens, p < K), x[i, p], T.float32(0))
        for task in T.parallel(TASKS):
            with T.sblock("rows"):
                block = T.axis.spatial(TASKS, task)
                T.reads()
                T.writes()
                weights = T.sblock_alloc_buffer((ROWS, LONG), "float32", scope="local")
                acc = T.sblock_alloc_buffer((TILE * TILE, LANES), "float32", scope="local")
                for r in range(ROWS):
                    for p in range(K):
                        weights[r, p] = T.Cast("float32", w[T.min(block * ROWS + r, N - 1), p])
                    for p in range(LONG - K):
                        weights[r, K + p] = T.float32(0)
                _multiply(padded, weights, acc, y, tokens, block, N, LONG // LANES)

    return kernel
