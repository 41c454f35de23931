"""Products on packed weights on a GPU: what is launched for how many tokens, rows and columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType

import torch
import triton.language as tl

from qconvert.kernels.gpu import products_int8_kernels as bytes_kernels
from qconvert.kernels.gpu import products_kernels as few_kernels
from qconvert.kernels.gpu import products_tiled_kernels as tiled_kernels
from qconvert.kernels.gpu.launch import Bounds, Launch, pointer_to
from qconvert.kernels.plain import products as plain

FEW = 16
"""Tokens up to which the weights are read once, by programs that share the columns among them."""
WORDS = 16
"""Words of a row that a program of w4a16 takes together: 128 columns."""
PROGRAMS = 400
"""Programs that few tokens are shared among, where the columns are enough: about three for each
multiprocessor of an H100. It is fixed, so that sums are cut alike on every device."""
AREA = 8
BLOCK = 256
KINDS = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@lru_cache(maxsize=64)
def few(
    kind: torch.dtype, scales: torch.dtype, *, rows: int, zeros: bool, split: bool, whole: bool,
    full: bool,
) -> Launch:  # fmt: skip
    """w4a16 of up to `FEW` tokens, `rows` rows of weights in a program."""
    numbers = dict.fromkeys(("tokens", "rows", "words", "groups", "each", "span"), "i32")
    out = "*fp32" if split else pointer_to(kind)
    return Launch(
        few_kernels.w4a16_few,
        {"x": "*i32", "packed": "*i32", "scale": pointer_to(scales), "zero": "*i32", "out": out}
        | numbers,
        {
            "ZEROS": zeros, "KIND": KINDS[kind], "SPLIT": split, "WHOLE": whole, "FULL": full,
            "TOKENS": FEW, "ROWS": rows, "WORDS": WORDS,
        },
        stages=4,
        fused=True,
        instruction="mma.sync",
        bounds=Bounds(registers=168),
    )  # fmt: skip


@lru_cache(maxsize=8)
def joined(kind: torch.dtype) -> Launch:
    return Launch(
        few_kernels.join_splits,
        {"parts": "*fp32", "out": pointer_to(kind), "count": "i32", "splits": "i32"},
        {"BLOCK": BLOCK},
    )


@lru_cache(maxsize=64)
def many(
    kind: torch.dtype, scales: torch.dtype, *, tokens: int, zeros: bool, whole: bool
) -> Launch:
    """w4a16 by tiles of 128 rows and `tokens` tokens."""
    numbers = dict.fromkeys(("tokens", "rows", "words", "groups", "each"), "i32")
    return Launch(
        tiled_kernels.w4a16_many,
        {"x": pointer_to(kind), "packed": "*i32", "scale": pointer_to(scales), "zero": "*i32",
         "out": pointer_to(kind)} | numbers,
        {"ZEROS": zeros, "WHOLE": whole, "TOKENS": tokens, "ROWS": 128, "WORDS": WORDS,
         "AREA": AREA},
        warps=8,
        stages=3,
        fused=True,
        instruction="wgmma",
        bounds=Bounds(shared=128 * 1024),
    )  # fmt: skip


@lru_cache(maxsize=8)
def rounded(kind: torch.dtype, *, fixed: bool) -> Launch:
    return Launch(
        bytes_kernels.quantize_rows,
        {"x": pointer_to(kind), "codes": "*i8", "scales": "*fp32", "stride": "i32", "cols": "i32"},
        {"FIXED": fixed, "BLOCK": 2048},
    )


@lru_cache(maxsize=16)
def eight(kind: torch.dtype, *, tokens: int, rows: int, full: bool) -> Launch:
    """w8a8 by tiles of `rows` rows and `tokens` tokens."""
    large = tokens > FEW
    return Launch(
        bytes_kernels.w8a8,
        {"x": "*i8", "weight": "*i8", "own": "*fp32", "scale": "*fp32", "out": pointer_to(kind),
         "tokens": "i32", "rows": "i32", "cols": "i32"},
        {"FULL": full, "TOKENS": tokens, "ROWS": rows, "STEP": 128 if large else 256, "AREA": AREA},
        warps=8 if large else 4,
        stages=3,
        instruction="wgmma" if large else "mma.sync",
        bounds=Bounds(shared=128 * 1024),
    )  # fmt: skip


def w4a16(
    x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None
) -> torch.Tensor:
    """See `kernels.products`. Where a group is less than 128 columns, or not a multiple of them, a
    weight is rounded to the type of x once. float32 x, and groups that cut a word, are computed by
    the plain body."""
    (rows, words), groups = packed.shape, scale.shape[1]
    size = x.shape[1] // groups
    if x.dtype not in KINDS or (groups > 1 and size % 8):
        return plain.w4a16(x, packed, scale, zero)
    if x.shape[1] < 8 * words:
        x = torch.nn.functional.pad(x, (0, 8 * words - x.shape[1]))
    each = words if groups == 1 else size // 8
    taken = (packed.contiguous(), scale.contiguous(), packed if zero is None else zero.contiguous())
    out = x.new_empty((len(x), rows))
    whole = groups == 1 or each % WORDS == 0
    if len(x) <= FEW:
        _few(out, x, *taken, each, zeros=zero is not None, whole=whole)
        return out
    tokens = 64 if len(x) <= 64 else 128
    launch = many(x.dtype, scale.dtype, tokens=tokens, zeros=zero is not None, whole=whole)
    places = x.reshape(len(x), words, 8).transpose(1, 2).contiguous()
    programs = -(-len(x) // tokens) * -(-rows // 128)
    launch((programs,), places, *taken, out, len(x), rows, words, groups, each)
    return out


def _few(
    out: torch.Tensor, x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor,
    zero: torch.Tensor, each: int, *, zeros: bool, whole: bool,
) -> None:  # fmt: skip
    """w4a16 of a few tokens into `out`: the parts of the columns, then their sums in order."""
    (tokens, rows), words = out.shape, packed.shape[1]
    span, splits, together = cut(rows, words)
    launch = few(
        x.dtype, scale.dtype, rows=together, zeros=zeros, split=splits > 1, whole=whole,
        full=words % WORDS == 0,
    )  # fmt: skip
    parts = out if splits == 1 else x.new_empty((splits, tokens, rows), dtype=torch.float32)
    x = x.contiguous()
    pairs = (x.clone() if x.storage_offset() % 2 else x).view(torch.int32)
    numbers = (tokens, rows, words, scale.shape[1], each, span)
    launch((-(-rows // together), splits), pairs, packed, scale, zero, parts, *numbers)
    if splits > 1:
        count = tokens * rows
        joined(x.dtype)((-(-count // BLOCK),), parts, out, count, splits)


def cut(rows: int, words: int) -> tuple[int, int, int]:
    """Words of a split, splits, rows of a program: of the shape of the weights alone."""
    together = 128 if rows >= 8192 else 64
    tiles, steps = -(-rows // together), -(-words // WORDS)
    splits = 1
    while tiles * splits < PROGRAMS and steps >= 8 * splits:  # 4 steps stay for each
        splits *= 2
    span = -(-steps // splits) * WORDS
    return span, -(-words // span), together


def quantize_rows(x: torch.Tensor, fixed: float | None) -> tuple[torch.Tensor, torch.Tensor]:
    """See `kernels.products`."""
    x = x if x.stride(1) == 1 else x.contiguous()
    codes = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scale = torch.full((len(x),), fixed or 0.0, dtype=torch.float32, device=x.device)
    launch = rounded(x.dtype, fixed=fixed is not None)
    launch((len(x),), x, codes, scale, x.stride(0), x.shape[1])
    return codes, scale


def w8a8(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, fixed: float | None
) -> torch.Tensor:
    """See `kernels.products`."""
    codes, own = quantize_rows(x, fixed)
    scale = scale.float().contiguous()
    (rows, cols), out = weight.shape, x.new_empty((len(x), len(weight)))
    tokens, together = (FEW, 32) if len(x) <= FEW else (128, 128)
    step = 128 if tokens > FEW else 256
    launch = eight(x.dtype, tokens=tokens, rows=together, full=cols % step == 0)
    programs = -(-len(x) // tokens) * -(-rows // together)
    numbers = (len(x), rows, cols)
    launch((programs,), codes, weight.contiguous(), own, scale, out, *numbers)
    return out


HALF, BRAIN = torch.float16, torch.bfloat16
VARIANTS: Mapping[str, Callable[[], Launch]] = MappingProxyType({
    "w4a16-few-fp16": lambda: few(
        HALF, HALF, rows=128, zeros=False, split=True, whole=True, full=True
    ),
    "w4a16-few-bf16-zeros": lambda: few(
        BRAIN, BRAIN, rows=64, zeros=True, split=True, whole=True, full=True
    ),
    "w4a16-few-g32": lambda: few(
        HALF, HALF, rows=64, zeros=True, split=False, whole=False, full=False
    ),
    "w4a16-join": lambda: joined(BRAIN),
    "w4a16-many-bf16": lambda: many(BRAIN, BRAIN, tokens=128, zeros=False, whole=True),
    "w4a16-many-g32": lambda: many(HALF, HALF, tokens=64, zeros=True, whole=False),
    "rounded": lambda: rounded(BRAIN, fixed=False),
    "w8a8-few": lambda: eight(BRAIN, tokens=FEW, rows=32, full=True),
    "w8a8-many": lambda: eight(BRAIN, tokens=128, rows=128, full=True),
})  # fmt: skip
