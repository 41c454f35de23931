"""Rotations on a GPU: in one pass where a vector fits into the registers of a program, else its
parts first, and then what goes across them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import torch

from qconvert.kernels.gpu import rotation_kernels as kernels
from qconvert.kernels.gpu.launch import Launch, pointer_to
from qconvert.kernels.plain import rotation as plain

LARGEST = 1 << 14
"""Numbers of a vector that is rotated in one pass, its parts filled up to a power of two."""
USUAL = 1 << 12
"""Numbers that a program takes of shorter vectors, and of longer ones."""
WIDEST = 256
"""Order of a small matrix, at most; one that is larger is multiplied by torch."""
LEAST = 16
"""Rows and columns of a product."""
EACH = 1 << 10
"""Numbers of a warp, 32 for each thread; of wide products twice that, so that nothing spills."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """How vectors of p * m numbers are cut; all but `m` and `parts` powers of two."""

    m: int
    wide: int  # m, filled up
    chunk: int  # vectors of m numbers in a chunk
    parts: int  # chunks of a vector of p * m
    rows: int  # chunks of a program

    @classmethod
    def of(cls, n: int, m: int) -> Tiling:
        p = n // m
        wide = 1 if m == 1 else max(LEAST, 1 << (m - 1).bit_length())
        least = 1 if m == 1 else LEAST
        chunk = p if p * wide <= LARGEST else max(least, USUAL // wide)
        rows = max(1, USUAL // (chunk * wide), least // chunk)
        return cls(m, wide, chunk, p // chunk, rows)

    @property
    def warps(self) -> int:
        each = EACH if self.wide < 128 else 2 * EACH
        return max(4, min(16, self.rows * self.chunk * self.wide // each))


@lru_cache(maxsize=64)
def inside(n: int, m: int, kind: torch.dtype, to: torch.dtype) -> Launch:
    """What is done inside the chunks of vectors of n numbers."""
    cut = Tiling.of(n, m)
    constants = {"ROWS": cut.rows, "LOG": cut.chunk.bit_length() - 1, "PARTS": cut.parts}
    last = {"out": pointer_to(to), "chunks": "i32", "scale": "fp32"}
    first = {"x": pointer_to(kind), "signs": "*fp32"}
    if m == 1:
        return Launch(kernels.rotate_rows, first | last, constants, warps=cut.warps)
    return Launch(
        kernels.rotate_blocks,
        first | {"small": "*fp32"} | last,
        constants | {"M": m, "WIDE": cut.wide, "STEP": LEAST},
        warps=cut.warps,
        stages=1,
        fused=True,
        instruction="mma.sync",
    )


@lru_cache(maxsize=16)
def across(parts: int, kind: torch.dtype) -> Launch:
    """What is done across the chunks of a vector."""
    cols = max(16, USUAL // parts)
    return Launch(
        kernels.join_chunks,
        {"values": "*fp32", "out": pointer_to(kind), "size": "i32", "scale": "fp32"},
        {"LOG": parts.bit_length() - 1, "COLS": cols},
    )


def rotate(x: torch.Tensor, signs: torch.Tensor, small: torch.Tensor) -> torch.Tensor:
    """See `kernels.rotation`; all arguments in one piece. Products of `small` are made as three of
    TF32 each."""
    (tokens, n), m = x.shape, len(small)
    if m > WIDEST:
        return plain.rotate(x, signs, small)
    cut, scale = Tiling.of(n, m), (n // m) ** -0.5
    chunks = tokens * cut.parts
    alone = cut.parts == 1
    values = torch.empty_like(x, dtype=x.dtype if alone else torch.float32)
    arguments = (x, signs) if m == 1 else (x, signs, small)
    launch = inside(n, m, x.dtype, values.dtype)
    launch((-(-chunks // cut.rows),), *arguments, values, chunks, scale if alone else 1.0)
    if alone:
        return values
    out = torch.empty_like(x)
    join, size = across(cut.parts, x.dtype), n // cut.parts
    blocks = -(-size // join.constants["COLS"])
    join((blocks * tokens,), values, out, size, scale)
    return out


VARIANTS: Mapping[str, Callable[[], Launch]] = MappingProxyType({
    "128-bf16": lambda: inside(128, 1, torch.bfloat16, torch.bfloat16),
    "4096-bf16": lambda: inside(4096, 1, torch.bfloat16, torch.bfloat16),
    "16384-fp32": lambda: inside(16384, 1, torch.float32, torch.float32),
    "14336-bf16": lambda: inside(14336, 28, torch.bfloat16, torch.bfloat16),
    "13824-fp16": lambda: inside(13824, 108, torch.float16, torch.float16),
    "53248-bf16": lambda: inside(53248, 104, torch.bfloat16, torch.float32),
    "53248-bf16-across": lambda: across(16, torch.bfloat16),
})  # fmt: skip
