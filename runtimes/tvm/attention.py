# mypy: ignore-errors
# ruff: noqa: ANN201, ANN202
# (TVMScript: a language of its own in Python's syntax, whose annotations are values.)
"""Rotary positions, the cache, and causal attention, in one TIR function."""

from __future__ import annotations

import math
from functools import cache

from tvm.script import tirx as T

LANES = 16


@cache  # parsing takes longer than all else
def attention(heads: int, kv_heads: int, head_dim: int, room: int):
    """o [tokens, heads * head_dim] of qkv [tokens, (heads + 2 kv_heads) * head_dim].

    The tokens stand at positions past[0], past[0] + 1, ... Their keys, turned, and values are
    written into the caches in place: keys [kv_heads, head_dim, room], so that lanes are positions,
    values [kv_heads, room, head_dim]. `room`: a multiple of 16.
    """
    H, KV, D, C = heads, kv_heads, head_dim, room
    HALF, SHARE = D // 2, heads // kv_heads
    WIDE = (H + 2 * KV) * D
    PART = math.gcd(D, LANES)  # of a value, in one vector
    SCALE = D**-0.5

    @T.prim_func(private=True, s_tir=True)
    def kernel(
        pq: T.handle,
        cos: T.Buffer((C, HALF), "float32"),
        sin: T.Buffer((C, HALF), "float32"),
        past: T.Buffer((1,), "int32"),
        keys: T.Buffer((KV, D, C), "float32"),
        values: T.Buffer((KV, C, D), "float32"),
        po: T.handle,
    ):
        T.func_attr({"op_pattern": 8, "tirx.noalias": True})
        tokens = T.int64()
        qkv = T.match_buffer(pq, (tokens, WIDE), "float32")
        o = T.match_buffer(po, (tokens, H * D), "float32")
        turned = T.sblock_alloc_buffer((tokens, H, D), "float32")
        for i in T.parallel(tokens):
            for h in range(H):
                for d in range(HALF):
                    turned[i, h, d] = (
                        qkv[i, h * D + d] * cos[past[0] + i, d]
                        - qkv[i, h * D + HALF + d] * sin[past[0] + i, d]
                    ) * T.float32(SCALE)
                    turned[i, h, HALF + d] = (
                        qkv[i, h * D + HALF + d] * cos[past[0] + i, d]
                        + qkv[i, h * D + d] * sin[past[0] + i, d]
                    ) * T.float32(SCALE)
            for h in range(KV):
                for d in range(HALF):
                    keys[h, d, past[0] + i] = (
                        qkv[i, (H + h) * D + d] * cos[past[0] + i, d]
                        - qkv[i, (H + h) * D + HALF + d] * sin[past[0] + i, d]
                    )
                    keys[h, HALF + d, past[0] + i] = (
                        qkv[i, (H + h) * D + HALF + d] * cos[past[0] + i, d]
                        + qkv[i, (H + h) * D + d] * sin[past[0] + i, d]
                    )
                for d in range(D):
                    values[h, past[0] + i, d] = qkv[i, (H + KV + h) * D + d]
        for task in T.parallel(tokens * H):
            with T.sblock("head"):
                at = T.axis.spatial(tokens * H, task)
                T.reads()
                T.writes()
                scores = T.sblock_alloc_buffer((C,), "float32", scope="local")
                acc = T.sblock_alloc_buffer((D,), "float32", scope="local")
                most = T.sblock_alloc_buffer((1,), "float32", scope="local")
                total = T.sblock_alloc_buffer((1,), "float32", scope="local")
                for j in range((past[0] + at // H + LANES) // LANES):
                    for lane in T.vectorized(LANES):
                        scores[j * LANES + lane] = T.float32(0)
                    for d in range(D):
                        for lane in T.vectorized(LANES):
                            scores[j * LANES + lane] = (
                                scores[j * LANES + lane]
                                + turned[at // H, at % H, d]
                                * keys[at % H // SHARE, d, j * LANES + lane]
                            )
                most[0] = scores[0]
                for j in range(past[0] + at // H + 1):
                    most[0] = T.max(most[0], scores[j])
                total[0] = T.float32(0)
                for j in range(past[0] + at // H + 1):
                    scores[j] = T.exp(scores[j] - most[0])
                    total[0] = total[0] + scores[j]
                for d in T.vectorized(D):
                    acc[d] = T.float32(0)
                for j in range(past[0] + at // H + 1):
                    for p in T.unroll(D // PART):
                        for lane in T.vectorized(PART):
                            acc[p * PART + lane] = (
                                acc[p * PART + lane]
                                + scores[j] * values[at % H // SHARE, j, p * PART + lane]
                            )
                for d in range(D):
                    o[at // H, at % H * D + d] = acc[d] / total[0]

    return kernel
