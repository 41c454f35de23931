"""Launches of `packing_kernels` and `packing_storing_kernels`, one of each layout and type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from qconvert.kernels import layouts
from qconvert.kernels.gpu import packing_kernels as kernels
from qconvert.kernels.gpu import packing_storing_kernels as storing
from qconvert.kernels.gpu.launch import Launch, pointer_to
from qconvert.kernels.layouts import BlockLayout, Codes, Half, Numbers, Plane, Term

KINDS = {"float16": torch.float16, "int8": torch.int8, "uint8": torch.uint8}
AT_ONCE = 2048  # codes of a tile: sixteen of a thread

_ARRAYS = {"packed": "*u8", "codes": "*u8", "half": "*i16", "other": "*i16", "scales": "*u8",
           "mins": "*u8"}  # fmt: skip
_SIZES = {"blocks": "i64"}


def pack(codes: Tensor, params: Mapping[str, Tensor], layout: BlockLayout) -> Tensor:
    rows, cols = codes.shape
    packed = codes.new_empty((rows, layout.row_bytes(cols)))
    _run(packing(layout), packed, codes.contiguous(), params, layout)
    return packed


def unpack(packed: Tensor, layout: BlockLayout, cols: int) -> tuple[Tensor, dict[str, Tensor]]:
    rows, per_row = packed.shape[0], cols // layout.cols
    codes = packed.new_empty((rows, cols))
    params = {
        name: torch.empty((rows, per_row * count), dtype=KINDS[kind], device=packed.device)
        for name, (count, kind) in layout.parameters.items()
    }
    _run(unpacking(layout), packed.contiguous(), codes, params, layout)
    return codes, params


def dequantize(packed: Tensor, layout: BlockLayout, cols: int, dtype: torch.dtype) -> Tensor:
    out = torch.empty((packed.shape[0], cols), dtype=dtype, device=packed.device)
    launch, blocks = dequantizing(layout, dtype), out.numel() // layout.cols
    if blocks:
        launch(_programs(launch, blocks), packed.contiguous(), out, blocks)
    return out


def _run(
    launch: Launch, packed: Tensor, codes: Tensor, params: Mapping[str, Tensor], layout: BlockLayout
) -> None:
    """Pack or unpack; what a block does not have is any tensor of the right type."""
    blocks = codes.numel() // layout.cols
    if not blocks:
        return
    halves = [params[half.name].contiguous().view(torch.int16) for _, half in layout.halves]
    names = layout.numbers[1].names if layout.numbers else ()
    numbers = [params[name].contiguous().view(torch.uint8) for name in names]
    numbers += [codes] * (2 - len(numbers))
    launch(_programs(launch, blocks), packed, codes, halves[0], halves[-1], *numbers, blocks)


def _programs(launch: Launch, blocks: int) -> tuple[int]:
    return (-(-blocks // launch.constants["BLOCKS"]),)


@cache
def packing(layout: BlockLayout) -> Launch:
    constants = {**_parts(layout), "BLOCKS": max(1, 2 * AT_ONCE // layout.cols)}
    return Launch(storing.pack_blocks, {**_ARRAYS, **_SIZES}, constants)


@cache
def unpacking(layout: BlockLayout) -> Launch:
    return Launch(kernels.unpack_blocks, {**_ARRAYS, **_SIZES}, {**_parts(layout), **_tile(layout)})


@cache
def dequantizing(layout: BlockLayout, dtype: torch.dtype) -> Launch:
    constants = {
        **_parts(layout), **_tile(layout), "GROUP": layout.size,
        "SCALE": _term(layout, layout.scale),
        "OFFSET": None if layout.offset is None else _term(layout, layout.offset),
        "LOWEST": layout.levels[0], "TABLE": _words(layout.levels) if layout.is_table else None,
    }  # fmt: skip
    signature = {"packed": "*u8", "out": pointer_to(dtype), **_SIZES}
    return Launch(kernels.dequantize_blocks, signature, constants)


def _parts(layout: BlockLayout) -> dict[str, Any]:
    """Where the parts of a block lie. `ValueError` where no kernel knows the pieces of numbers."""
    numbers: tuple[Any, ...] = ()
    subs: tuple[Any, ...] = ()
    if layout.numbers is not None:
        at, part = layout.numbers
        if part.pieces not in ((), layouts.SIX_BIT_PAIRS):
            raise ValueError(f"no kernel for numbers in pieces: {part.pieces}")
        subs = tuple((first, *_plane(plane)) for first, plane in part.planes)
        numbers = (at, len(part.names), part.count, part.bias, part.signed, bool(part.pieces))
    return {
        "PLANES": tuple((at, *_plane(part.plane), part.flip) for at, part in layout.codes),
        "HALVES": tuple(at for at, _ in layout.halves),
        "NUMBERS": numbers,
        "SUBS": subs,
        "COLS": layout.cols,
        "NBYTES": layout.nbytes,
    }


def _plane(plane: Plane) -> tuple[int, int, int]:
    return plane.width, plane.group, plane.shift


def _tile(layout: BlockLayout) -> dict[str, int]:
    """How columns are cut: no shift changes within UNIT of them, planes repeat after SPAN."""
    planes = [part.plane for _, part in layout.codes if part.plane.stride > 1]
    unit = min(plane.stride for plane in planes)
    span = min(plane.group for plane in planes)
    return {
        "SPAN": span,
        "UNIT": unit,
        "LONG": max(plane.stride for plane in planes),
        "SIZE": min(unit, layout.size),
        "BLOCKS": max(1, AT_ONCE // (layout.cols // span * unit)),
    }


def _term(layout: BlockLayout, term: Term) -> tuple[int, int, bool]:
    """First byte of its half; its first number, or -1; whether it is taken off."""
    half = next(at for at, part in layout.halves if part.name == term.half)
    if term.whole is None or layout.numbers is None:
        return half, -1, term.minus
    _, numbers = layout.numbers
    return half, numbers.names.index(term.whole) * numbers.count, term.minus


def _words(levels: tuple[int, ...]) -> tuple[int, int]:
    """Sixteen levels as signed bytes in two signed words, the first in the lowest bits."""
    stored = bytes(level & 255 for level in levels)
    return (
        int.from_bytes(stored[:8], "little", signed=True),
        int.from_bytes(stored[8:], "little", signed=True),
    )


_PAIRS = Numbers(("scales", "mins"), 8, 12, pieces=layouts.SIX_BIT_PAIRS)
EXAMPLES: Mapping[str, BlockLayout] = {
    "Q5_1": BlockLayout(
        32, 32, (Half("d"), Half("m"), Codes(Plane(1, 8, 4), 32), Codes(Plane(4, 32), 32)),
        tuple(range(32)), Term("d"), Term("m"),
    ),
    "Q5_K": BlockLayout(
        256, 32,
        (Half("d"), Half("dmin"), _PAIRS, Codes(Plane(1, 256, 4), 256), Codes(Plane(4, 64), 256)),
        tuple(range(32)), Term("d", "scales"), Term("dmin", "mins", minus=True),
    ),
    "Q6_K": BlockLayout(
        256, 16,
        (
            Codes(Plane(4, 128), 256), Codes(Plane(2, 128, 4), 256),
            Numbers(("scales",), 16, 16, ((0, Plane(8, 16)),), signed=True), Half("d"),
        ),
        tuple(range(-32, 32)), Term("d", "scales"),
    ),
    "IQ4_XS": BlockLayout(
        256, 32,
        (
            Half("d"),
            Numbers(("scales",), 8, 6, ((0, Plane(2, 4, 4)), (2, Plane(4, 2))), 32, True),
            Codes(Plane(4, 32), 256),
        ),
        (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113),
        Term("d", "scales"),
    ),
}  # fmt: skip
"""Layouts of GGUF that among them ask for every way through the kernels, as `formats` has them:
nothing here may import it, and the tests hold both to be the same."""

VARIANTS: Mapping[str, Callable[[], Launch]] = {
    "pack IQ4_XS": lambda: packing(EXAMPLES["IQ4_XS"]),
    "pack Q5_K": lambda: packing(EXAMPLES["Q5_K"]),
    "unpack Q6_K": lambda: unpacking(EXAMPLES["Q6_K"]),
    "dequantize IQ4_XS": lambda: dequantizing(EXAMPLES["IQ4_XS"], torch.float32),
    "dequantize Q5_1": lambda: dequantizing(EXAMPLES["Q5_1"], torch.float16),
    "dequantize Q5_K": lambda: dequantizing(EXAMPLES["Q5_K"], torch.bfloat16),
    "dequantize Q6_K": lambda: dequantizing(EXAMPLES["Q6_K"], torch.float16),
}
