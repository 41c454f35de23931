# mypy: ignore-errors
# ruff: noqa: ANN201, ANN202
# (TVMScript: a language of its own in Python's syntax, whose annotations are values.)
"""Products with a matrix that is not quantized, in TIR, in float32."""

from __future__ import annotations

from functools import cache

from tvm.script import tirx as T

from qconvert.runtimes.tvm.lanes import LANES, ROWS, TILE, clear, multiply, padded, sum_lanes


@cache  # parsing takes longer than all else
def plain_vector(rows: int, columns: int, dtype: str):
    """y [1, rows] of x [1, columns]."""
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
                    clear(acc, 2)
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
                    sum_lanes(acc, 0)
                    for k in range(REST):
                        acc[0, 0] = (
                            acc[0, 0]
                            + T.Cast("float32", w[block * ROWS + r, K - REST + k])
                            * x[0, K - REST + k]
                        )
                    y[0, block * ROWS + r] = acc[0, 0]

    return kernel


@cache  # parsing takes longer than all else
def plain_matrix(rows: int, columns: int, dtype: str):
    """y [tokens, rows] of x [tokens, columns]."""
    N, K = rows, columns
    LONG = padded(K, LANES)
    TASKS = -(-N // ROWS)

    @T.prim_func(private=True, s_tir=True)
    def kernel(px: T.handle, w: T.Buffer((N, K), dtype), py: T.handle):
        T.func_attr({"op_pattern": 8, "tirx.noalias": True})
        tokens = T.int64()
        x = T.match_buffer(px, (tokens, K), "float32")
        y = T.match_buffer(py, (tokens, N), "float32")
        whole = T.sblock_alloc_buffer(((tokens + TILE - 1) // TILE * TILE, LONG), "float32")
        for i in T.parallel((tokens + TILE - 1) // TILE * TILE):
            for p in range(LONG):
                whole[i, p] = T.if_then_else(T.And(i < tokens, p < K), x[i, p], T.float32(0))
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
                multiply(whole, weights, acc, y, tokens, block, N, LONG // LANES)

    return kernel
