"""GGUF's blocks as numpy sees them: scales and codes out of the bytes and in again.

Layouts: ggml-common.h of ggml, block_q4_0 and its like; the order of codes is that of
dequantize_row_* in ggml-quants.c.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planting.output import Fields

Blocks = NDArray[Any]  # of a structured type, [rows, blocks]


@dataclass(frozen=True, slots=True)
class Block:
    dtype: np.dtype[Any]
    count: int  # codes in a block
    read: Callable[[Blocks], NDArray[np.int16]]  # [rows, blocks, count]
    write: Callable[[Blocks, NDArray[np.int16]], None]
    scale: str = "d"
    minimum: str = ""  # the field that is subtracted
    sub: str = ""  # scales of parts of the block


def _halves(low: NDArray[Any], high: NDArray[Any]) -> NDArray[np.int16]:
    return np.concatenate([low, high], -1).astype(np.int16)


def _read_q4_0(b: Blocks) -> NDArray[np.int16]:
    return _halves(b["qs"] & 15, b["qs"] >> 4)


def _write_q4_0(b: Blocks, codes: NDArray[np.int16]) -> None:
    b["qs"] = (codes[..., :16] & 15) | (codes[..., 16:] & 15) << 4


def _read_q5_0(b: Blocks) -> NDArray[np.int16]:
    fifth = np.unpackbits(b["qh"], axis=-1, bitorder="little").astype(np.int16)
    return _read_q4_0(b) | fifth << 4


def _write_q5_0(b: Blocks, codes: NDArray[np.int16]) -> None:
    _write_q4_0(b, codes)
    b["qh"] = np.packbits((codes >> 4 & 1).astype(np.uint8), axis=-1, bitorder="little")


def _read_q8_0(b: Blocks) -> NDArray[np.int16]:
    return b["qs"].astype(np.int16)


def _write_q8_0(b: Blocks, codes: NDArray[np.int16]) -> None:
    b["qs"] = codes


def _read_q4_k(b: Blocks) -> NDArray[np.int16]:
    runs = b["qs"].reshape(*b.shape, 4, 32)
    return np.stack([runs & 15, runs >> 4], -2).reshape(*b.shape, 256).astype(np.int16)


def _write_q4_k(b: Blocks, codes: NDArray[np.int16]) -> None:
    runs = codes.reshape(*b.shape, 4, 2, 32) & 15
    b["qs"] = (runs[..., 0, :] | runs[..., 1, :] << 4).reshape(*b.shape, 128)


def _read_q6_k(b: Blocks) -> NDArray[np.int16]:
    low = b["ql"].reshape(*b.shape, 2, 1, 64).astype(np.int16)
    high = b["qh"].reshape(*b.shape, 2, 1, 32).astype(np.int16)
    four = np.concatenate([low & 15, low >> 4], -2).reshape(*b.shape, 2, 4, 32)
    two = np.concatenate([high >> shift & 3 for shift in (0, 2, 4, 6)], -2)
    return np.asarray(four | two << 4, np.int16).reshape(*b.shape, 256)


def _write_q6_k(b: Blocks, codes: NDArray[np.int16]) -> None:
    parts = codes.reshape(*b.shape, 2, 4, 32) & 63
    four = (parts & 15).reshape(*b.shape, 2, 2, 64)
    b["ql"] = (four[..., 0, :] | four[..., 1, :] << 4).reshape(*b.shape, 128)
    two = parts >> 4
    joined = sum(two[..., place, :] << 2 * place for place in range(4))
    b["qh"] = np.asarray(joined).reshape(*b.shape, 64)


BLOCKS: Mapping[str, Block] = {
    "Q4_0": Block(
        np.dtype([("d", "<f2"), ("qs", "u1", 16)]), 32, _read_q4_0, _write_q4_0
    ),
    "Q5_0": Block(
        np.dtype([("d", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)]), 32, _read_q5_0, _write_q5_0
    ),
    "Q8_0": Block(np.dtype([("d", "<f2"), ("qs", "i1", 32)]), 32, _read_q8_0, _write_q8_0),
    "Q4_1": Block(
        np.dtype([("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)]), 32, _read_q4_0, _write_q4_0,
        minimum="m",
    ),
    "Q4_K": Block(
        np.dtype([("d", "<f2"), ("dmin", "<f2"), ("sub", "u1", 12), ("qs", "u1", 128)]), 256,
        _read_q4_k, _write_q4_k, minimum="dmin", sub="sub",
    ),
    "Q6_K": Block(
        np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("sub", "i1", 16), ("d", "<f2")]), 256,
        _read_q6_k, _write_q6_k, sub="sub",
    ),
}  # fmt: skip
"""By ggml's names, the types that planters look into."""


def fields_of(raw: NDArray[np.uint8], kind: Block) -> Fields:
    """Of the bytes of rows [rows, bytes]."""
    blocks = np.ascontiguousarray(raw).view(kind.dtype)
    rows = len(blocks)
    found: Fields = {"code": kind.read(blocks).reshape(rows, -1), "scale": blocks["d"].copy()}
    if kind.minimum:
        found["min"] = blocks[kind.minimum].copy()
    if kind.sub:
        found["sub"] = blocks[kind.sub].copy()
    return found


def bytes_of(raw: NDArray[np.uint8], kind: Block, fields: Fields) -> NDArray[np.uint8]:
    """`raw` with `fields` in it."""
    blocks = np.ascontiguousarray(raw).copy().view(kind.dtype)
    kind.write(blocks, fields["code"].reshape(*blocks.shape, kind.count))
    blocks["d"] = fields["scale"]
    if kind.minimum:
        blocks[kind.minimum] = fields["min"]
    if kind.sub:
        blocks[kind.sub] = fields["sub"]
    return blocks.view(np.uint8).reshape(raw.shape)
