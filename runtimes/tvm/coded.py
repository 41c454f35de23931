# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, ANN202
# (TVMScript: a language of its own in Python's syntax, whose annotations are values.)
"""Products with a matrix of codes, in TIR: decoded and multiplied in float32.

A code becomes (code - middle) * scale, rounded to the model's dtype, as MLC decodes it. Lanes of a
vector hold the same code of 16 consecutive words, so no code moves between lanes: inputs are laid
out to fit, position j * words + w for code j of word w. Columns beyond the row's end meet zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from tvm.script import tirx as T

from qconvert.runtimes.tvm.lanes import (
    LANES,
    ROWS,
    TILE,
    multiply,
    padded,
    rounded,
    sum_lanes,
    vector,
)
from qconvert.runtimes.tvm.schemes import Scheme


@dataclass(frozen=True, slots=True)
class Coded:
    """A matrix [rows, columns] of codes."""

    rows: int
    columns: int
    scheme: Scheme
    exact: bool  # no product of a code and a scale needs rounding, in any matrix of the model

    @property
    def groups(self) -> int:
        return self.scheme.groups(self.columns)

    @property
    def words(self) -> int:
        return self.scheme.words(self.columns)

    @property
    def share(self) -> int:
        """Words that have one scale."""
        return self.words // self.groups

    @property
    def wide(self) -> int:
        """Columns with the padding of the last group."""
        return self.words * self.scheme.per_word

    @property
    def tasks(self) -> int:
        return -(-self.rows // ROWS)

    def codes(self, words, j: int, lanes: int):
        """Code `j` of each of `lanes` words, as float32."""
        bits, found = self.scheme.bits, words
        if j:
            found = T.shift_right(found, T.Broadcast(T.uint32(j * bits), lanes))
        if (j + 1) * bits < 32:  # what lies above it
            found = T.bitwise_and(found, T.Broadcast(T.uint32(self.scheme.mask), lanes))
        return T.Cast(vector("float32", lanes), T.Cast(vector("int32", lanes), found))

    def scales(self, scales, row, first, lanes: int):
        """Of `lanes` words from `first`, a whole group or more."""
        groups, start = lanes // self.share, first // self.share
        if groups == 1:
            return T.Broadcast(T.Cast("float32", scales[row, start]), lanes)
        found = T.Cast(vector("float32", groups), scales[row, T.Ramp(start, 1, groups)])
        return T.Shuffle([found] * self.share, [lane // self.share for lane in range(lanes)])

    def dot(self, codes, scales, row, first, lanes: int, spread, total):
        """Of `lanes` words with the inputs that they meet; sums over codes, not over lanes.

        Where products are exact the sum of a word is scaled, in place of every weight, and the
        middle is taken off by `total`: the same but for float32's rounding of sums.
        """
        at, middle = T.Ramp(first, 1, lanes), T.Broadcast(T.float32(self.scheme.middle), lanes)
        words, scale = codes[row, at], self.scales(scales, row, first, lanes)
        sums = [total[at] * middle if self.exact else None, None]
        for j in range(self.scheme.per_word):
            weight = self.codes(words, j, lanes)
            if not self.exact:
                weight = rounded((weight - middle) * scale, self.scheme.dtype, lanes)
            term, lane = weight * spread[j, at], j % 2
            sums[lane] = term if sums[lane] is None else sums[lane] + term
        found = sums[0] + sums[1]
        return found * scale if self.exact else found


@cache  # parsing takes longer than all else
def coded_vector(matrix: Coded):
    """y [1, rows] of x [1, columns]: bound by memory, so codes are read once and go nowhere."""
    N, K, W, G = matrix.rows, matrix.columns, matrix.words, matrix.groups
    P, dtype = matrix.scheme.per_word, matrix.scheme.dtype
    FULL, TAIL = W // LANES, W % LANES

    @T.inline
    def add(acc, q, s, row, first, lanes, spread, total):
        acc[0, T.Ramp(0, 1, lanes)] = acc[0, T.Ramp(0, 1, lanes)] + matrix.dot(
            q, s, row, first, lanes, spread, total
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
                total[w] = total[w] - spread[j, w]
        for task in T.parallel(matrix.tasks):
            with T.sblock("rows"):
                block = T.axis.spatial(matrix.tasks, task)
                T.reads()
                T.writes()
                acc = T.sblock_alloc_buffer((1, LANES), "float32", scope="local")
                for r in range(T.min(ROWS, N - block * ROWS)):
                    for lane in T.vectorized(LANES):
                        acc[0, lane] = T.float32(0)
                    for c in range(FULL):
                        add(acc, q, s, block * ROWS + r, c * LANES, LANES, spread, total)
                    if TAIL > 0:
                        add(acc, q, s, block * ROWS + r, FULL * LANES, TAIL, spread, total)
                    sum_lanes(acc, 0)
                    y[0, block * ROWS + r] = acc[0, 0]

    return kernel


@cache  # parsing takes longer than all else
def coded_matrix(matrix: Coded):
    """y [tokens, rows] of x [tokens, columns]: a block of rows is decoded once for all tokens."""
    N, K, W, G = matrix.rows, matrix.columns, matrix.words, matrix.groups
    P, SHARE, dtype = matrix.scheme.per_word, matrix.share, matrix.scheme.dtype
    WIDE, LONG = matrix.wide, padded(matrix.wide, LANES)

    @T.inline
    def decode(weights, r, q, s, row):
        for g in range(G):
            for j in T.unroll(P):
                for lane in T.vectorized(SHARE):
                    weights[r, j * W + g * SHARE + lane] = T.Cast(
                        "float32",
                        T.bitwise_and(
                            T.shift_right(
                                q[row, g * SHARE + lane], T.Cast("uint32", j * matrix.scheme.bits)
                            ),
                            T.uint32(matrix.scheme.mask),
                        ),
                    )
                for lane in T.vectorized(SHARE):
                    weights[r, j * W + g * SHARE + lane] = rounded(
                        (weights[r, j * W + g * SHARE + lane] - T.float32(matrix.scheme.middle))
                        * T.Cast("float32", s[row, g]),
                        dtype,
                    )
        for p in range(LONG - WIDE):
            weights[r, WIDE + p] = T.float32(0)

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
        for task in T.parallel(matrix.tasks):
            with T.sblock("rows"):
                block = T.axis.spatial(matrix.tasks, task)
                T.reads()
                T.writes()
                weights = T.sblock_alloc_buffer((ROWS, LONG), "float32", scope="local")
                acc = T.sblock_alloc_buffer((TILE * TILE, LANES), "float32", scope="local")
                for r in range(ROWS):
                    decode(weights, r, q, s, T.min(block * ROWS + r, N - 1))
                multiply(spread, weights, acc, y, tokens, block, N, LONG // LANES)

    return kernel
