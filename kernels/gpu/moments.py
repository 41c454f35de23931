"""Sums over tokens on a GPU: products by tiles of the triangle, channels in one pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType

import torch

from qconvert.kernels.gpu import moments_kernels as kernels
from qconvert.kernels.gpu.launch import Bounds, Launch, pointer_to

TOGETHER = 8192
"""Tokens that one tile sums before it is added to the total: bounds the error of long sums."""
AREA = 8
"""Tiles on a side of the squares of the triangle in whose order tiles are made: programs that run
at the same time read few strips of x, which stay in the cache."""
PARTS = 64
"""Parts of the tokens that are summed beside each other, at most; 16 tokens in each, at least."""
LEAST = 16


@lru_cache(maxsize=64)
def products(kind: torch.dtype, *, tile: int, full: bool) -> Launch:
    """Of x of this type, for tiles of `tile` channels; `full`: none is cut by the last column."""
    whole = dict.fromkeys(("tokens", "stride", "start", "rows"), "i32")
    wide = kind is torch.float32
    return Launch(
        kernels.add_products,
        {"x": pointer_to(kind), "places": "*i32", "total": "*fp32"} | whole,
        {"TILE": tile, "STEP": 32 if wide else 64, "FULL": full, "PRECISION": "tf32x3"},
        warps=8 if tile > 64 else 4,
        stages=2 if wide else 4,
        fused=True,
        instruction="mma.sync" if wide else "wgmma",
        bounds=Bounds(shared=160 * 1024, spills=64 if wide else 0),  # of Triton before 3.9
    )


@lru_cache(maxsize=16)
def sums(kind: torch.dtype, *, narrow: bool) -> Launch:
    whole = dict.fromkeys(("tokens", "stride", "cols", "each"), "i32")
    return Launch(
        kernels.sum_parts,
        {"x": pointer_to(kind), "sums": "*fp32"} | whole,
        {"NARROW": narrow, "ROWS": 16, "COLS": 128},
        fused=True,
    )


@lru_cache(maxsize=1)
def joined() -> Launch:
    vectors = dict.fromkeys(("mean", "mean_abs", "fourth", "lowest", "highest"), "*fp32")
    return Launch(
        kernels.join_parts,
        {"sums": "*fp32"} | vectors | {"parts": "i32", "cols": "i32"},
        {"COLS": 128},
    )


@lru_cache(maxsize=64)
def places(start: int, stop: int, tile: int, device: torch.device) -> torch.Tensor:
    """int32 [tiles, 2]: tiles from row 0 and column `start` with something of the upper triangle,
    those of a square of AREA x AREA together."""
    down, across = -(-stop // tile), -(-(stop - start) // tile)
    i = torch.arange(down).repeat_interleave(across)
    j = torch.arange(across).repeat(down)
    needed = i * tile < (start + (j + 1) * tile).clamp(max=stop)
    i, j = i[needed], j[needed]
    square = (j // AREA) * (-(-down // AREA)) + i // AREA
    order = square.argsort(stable=True)
    return torch.stack((i, j), 1)[order].to(torch.int32).to(device)


def add_products(total: torch.Tensor, x: torch.Tensor, start: int, narrow: bool) -> None:
    """See `kernels.moments`. float32 factors are multiplied as three TF32 products each."""
    _sums_in_one_piece(total=total)
    if narrow and x.dtype == torch.float32:
        x = x.bfloat16()
    x = x if x.stride(1) == 1 else x.contiguous()
    stop = len(total)
    tile = 128 if stop > 2048 else 64
    launch = products(x.dtype, tile=tile, full=(stop - start) % tile == 0 and start % tile == 0)
    tiles = places(start, stop, tile, x.device)
    for part in x.split(TOGETHER):
        launch((len(tiles),), part, tiles, total, len(part), x.stride(0), start, stop)


def add_vectors(vectors: Mapping[str, torch.Tensor], x: torch.Tensor, narrow: bool) -> None:
    """See `kernels.moments`: sums of parts of the tokens, then of the parts in order."""
    _sums_in_one_piece(**vectors)
    if not len(x):
        return
    x = x if x.stride(1) == 1 else x.contiguous()
    tokens, cols = x.shape
    each = max(LEAST, -(-tokens // PARTS))
    parts = -(-tokens // each)
    found = torch.empty((parts, 5, cols), dtype=torch.float32, device=x.device)
    blocks = -(-cols // 128)
    sums(x.dtype, narrow=narrow and x.dtype == torch.float32)(
        (blocks, parts), x, found, tokens, x.stride(0), cols, each
    )
    names = ("mean", "mean_abs", "fourth", "lowest", "highest")
    joined()((blocks,), found, *(vectors[name] for name in names), parts, cols)


def _sums_in_one_piece(**sums: torch.Tensor) -> None:
    """`ValueError` for what a kernel would write beside: views with gaps, and other types."""
    for name, one in sums.items():
        if one.dtype != torch.float32 or not one.is_contiguous():
            told = f"{one.dtype} {tuple(one.shape)}, strides {one.stride()}"
            raise ValueError(f"{name} is float32 without gaps, not {told}")


VARIANTS: Mapping[str, Callable[[], Launch]] = MappingProxyType({
    "products-bf16": lambda: products(torch.bfloat16, tile=128, full=True),
    "products-fp16-cut": lambda: products(torch.float16, tile=128, full=False),
    "products-bf16-small": lambda: products(torch.bfloat16, tile=64, full=True),
    "products-fp32": lambda: products(torch.float32, tile=128, full=True),
    "sums-bf16": lambda: sums(torch.bfloat16, narrow=False),
    "join": joined,
})  # fmt: skip
