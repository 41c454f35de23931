"""Launches of `words_kernels`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from qconvert.kernels import word_layouts
from qconvert.kernels.gpu import words_kernels as kernels
from qconvert.kernels.gpu.launch import Launch, pointer_to
from qconvert.kernels.word_layouts import Scales, SmallFloats, WordLayout

Shape = tuple[int, int]

TILE = 4096  # codes of a program
LONG = 128  # words of a row that lie side by side, of them
_KINDS: Mapping[str, int] = {"float": 0, "e4m3": 1, "e8m0": 2}


def pack(codes: torch.Tensor, layout: WordLayout) -> torch.Tensor:
    rows, cols = codes.shape
    shape = (rows, cols)
    words = torch.empty(
        layout.shape(shape),
        dtype=torch.uint8 if layout.word == 8 else torch.int32,
        device=codes.device,
    )
    wide, seen = _widened(layout, words, shape)
    launch = packing(kernels.pack_kernel, wide)
    launch(_programs(launch, wide, shape), codes, seen, *shape, *wide.natural(shape))
    return words


def unpack(words: torch.Tensor, layout: WordLayout, shape: Shape) -> torch.Tensor:
    codes = torch.empty(shape, dtype=torch.uint8, device=words.device)
    wide, seen = _widened(layout, words, shape)
    launch = packing(kernels.unpack_kernel, wide)
    launch(_programs(launch, wide, shape), seen, codes, *shape, *wide.natural(shape))
    return codes


def dequantize(
    words: torch.Tensor, scales: Scales, layout: WordLayout, shape: Shape, dtype: torch.dtype
) -> torch.Tensor:
    out = torch.empty(shape, dtype=dtype, device=words.device)
    wide, seen = _widened(layout, words, shape)
    values = scales.values
    zero = values if scales.zero is None else scales.zero
    whole = values if scales.whole is None else scales.whole
    launch = dequantizing(wide, scales, dtype)
    bits = out.view(torch.int16) if dtype == torch.bfloat16 else out
    launch(
        _programs(launch, wide, shape), seen, values, zero, whole, bits, *shape,
        *wide.natural(shape), values.shape[1], *values.stride(), *zero.stride(),
    )  # fmt: skip
    return out


def packing(kernel: Any, layout: WordLayout) -> Launch:
    """Of `pack_kernel` or `unpack_kernel`."""
    words = "*u8" if layout.word == 8 else "*i32"
    arrays = (
        {"codes": "*u8", "words": words}
        if kernel is kernels.pack_kernel
        else {"words": words, "codes": "*u8"}
    )
    sizes = {name: "i32" for name in ("rows", "cols", "U", "V")}
    return Launch(kernel, {**arrays, **sizes}, {**_lying(layout), **_coding(layout)})


def dequantizing(layout: WordLayout, scales: Scales, dtype: torch.dtype) -> Launch:
    values = pointer_to(scales.values.dtype)
    arrays = {
        "words": "*u8" if layout.word == 8 else "*i32",
        "values": values,
        "zero": values if scales.zero is None else "*u8",
        "whole": values if scales.whole is None else "*fp32",
        "out": "*i16" if dtype == torch.bfloat16 else pointer_to(dtype),
    }
    sizes = ("rows", "cols", "U", "V", "groups", "s_row", "s_group", "z_row", "z_group")
    constants = {
        **_lying(layout),
        **_coding(layout),
        **_levels(layout),
        "GROUP": scales.group,
        "TOGETHER": scales.together,
        "KIND": _KINDS[scales.kind],
        "WHOLE": scales.whole is not None,
        "ZERO": scales.zero is not None,
        "BFLOAT": dtype == torch.bfloat16,
    }
    signature = {**arrays, **{name: "i32" for name in sizes}}
    return Launch(kernels.dequantize_kernel, signature, constants)


def _widened(
    layout: WordLayout, words: torch.Tensor, shape: Shape
) -> tuple[WordLayout, torch.Tensor]:
    """Bytes of several codes along rows that fill words are those words: fewer, wider loads."""
    whole = words.numel() > 0 and words.shape[-1] % 4 == 0 and words.data_ptr() % 4 == 0
    shared = layout.word == 8 and layout.per > 1 and layout.along == "cols"
    if not (shared and whole) or layout.transposed:
        return layout, words
    return replace(layout, word=32), words.view(torch.int32)


def _lying(layout: WordLayout) -> dict[str, Any]:
    """How words lie, and the tile of a program: TILE codes, long where memory goes on both for
    words and for codes."""
    across = 1 << (layout.per - 1).bit_length()
    rows = layout.along == "rows"
    high = (16 if rows else 32) if layout.transposed else max(1, TILE // (across * LONG))
    places = sum(place << 4 * code for code, place in enumerate(layout.places))
    return {
        "ROWS": rows,
        "TURNED": layout.transposed,
        "BITS": layout.bits,
        "PER": layout.per,
        "PLACES": places if layout.order else 0,
        "BU": high,
        "BV": TILE // (across * high),
        "P": across,
    }


def _coding(layout: WordLayout) -> dict[str, Any]:
    coding: Any = layout.coding
    floats = isinstance(coding, SmallFloats)
    return {
        "ADDED": 0 if floats else coding.added,
        "NEGATED": coding.negated,
        "FLOAT": floats,
        "MAGNITUDES": coding.kind.magnitudes if floats else 0,
        "SIGN": coding.kind.sign if floats else 0,
        "MIDDLE": coding.middle if floats else 0,
    }


def _levels(layout: WordLayout) -> dict[str, Any]:
    coding: Any = layout.coding
    floats = isinstance(coding, SmallFloats)
    return {
        "LOWEST": 0 if floats else coding.lowest,
        "MANTISSA": coding.kind.mantissa if floats else 0,
        "BIAS": coding.kind.bias if floats else 0,
        "ZEROS": coding.zeros if floats else 1,
    }


def _programs(launch: Launch, layout: WordLayout, shape: Shape) -> tuple[int, int]:
    first, second = layout.natural(shape)
    return -(-first // launch.constants["BU"]), -(-second // launch.constants["BV"])


def _variant(layout: WordLayout, group: int, dtype: torch.dtype, **kept: Any) -> Launch:
    scales = Scales(torch.empty(0, dtype=kept.pop("scale", torch.float16)), group, **kept)
    return dequantizing(layout, scales, dtype)


_BYTE, _ONE = torch.empty(0, dtype=torch.uint8), torch.empty(0)
_FP4 = replace(word_layouts.fp4(), word=32)
VARIANTS: Mapping[str, Callable[[], Launch]] = {
    "pack int4": lambda: packing(kernels.pack_kernel, word_layouts.along_inputs(4, -8)),
    "pack awq": lambda: packing(kernels.pack_kernel, word_layouts.awq(-8)),
    "unpack gptq": lambda: packing(kernels.unpack_kernel, word_layouts.gptq(4)),
    "dequantize int4": lambda: _variant(
        word_layouts.along_inputs(4, 0), 128, torch.float16, zero=_BYTE
    ),
    "dequantize fp8": lambda: _variant(
        word_layouts.fp8(), 128, torch.float16, scale=torch.float32, together=128
    ),
    "dequantize mlc3": lambda: _variant(
        word_layouts.mlc(3, 40, own=False, transposed=False), 40, torch.float16
    ),
    "dequantize nvfp4": lambda: _variant(
        _FP4, 16, torch.bfloat16, scale=torch.uint8, kind="e4m3", whole=_ONE
    ),
}
