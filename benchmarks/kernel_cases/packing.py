"""Codes to bytes, bytes to codes, bytes to floats: as fast as memory, or nearly."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from kernel_cases.case import Case, Group, Setting, nbytes, rows_of, unlike
from kernel_cases.clock import Clock
from qconvert.formats.gguf.grids import GRIDS
from qconvert.kernels import packing, word_layouts, words
from qconvert.kernels.word_layouts import Scales, WordLayout

CHECKED = 64  # rows that are computed on the processor, too
COPY = {"limit": "copy", "wanted": 0.8}
TINY = ("Q4_K", "Q6_K", "IQ4_NL")


def groups(setting: Setting, _: Clock) -> Iterator[Group]:
    for name in GRIDS:
        if name in TINY or not setting.tiny:
            yield partial(_blocks, setting, name)
    for one in _layouts(setting):
        yield partial(_words, setting, *one)


def _blocks(setting: Setting, name: str) -> Iterator[Case]:
    layout = GRIDS[name].layout
    rows, cols = setting.sizes((14336, 4096), (3, 512))
    packed = setting.bytes(rows, layout.row_bytes(cols))
    codes, params = packing.unpack(packed, layout, cols, body="plain")
    for at, (_, half) in enumerate(layout.halves):  # random bytes may be no numbers
        params[half.name] = setting.normal(*params[half.name].shape, seed=at).half()
    packed = packing.pack(codes, params, layout, body="plain")
    few = rows_of((codes, params, packed), CHECKED)
    of = f"{name} {rows} x {cols}"
    moved = nbytes(codes, packed, *params.values())

    def same(wanted: Any) -> Any:
        return lambda found: unlike(rows_of(found, CHECKED), wanted)

    yield Case(
        "packing.pack", of, lambda: packing.pack(codes, params, layout, body="gpu"),
        same(packing.pack(few[0], few[1], layout, body="cpu")), moved=moved, **COPY,
    )  # fmt: skip
    yield Case(
        "packing.unpack", of, lambda: packing.unpack(packed, layout, cols, body="gpu"),
        same(packing.unpack(few[2], layout, cols, body="cpu")), moved=moved, **COPY,
    )  # fmt: skip
    for dtype in (torch.float32, torch.float16):
        wanted = packing.dequantize(few[2], layout, cols, dtype, body="cpu")
        yield Case(
            "packing.dequantize", f"{of} {_short(dtype)}",
            lambda dtype=dtype: packing.dequantize(packed, layout, cols, dtype, body="gpu"),
            same(wanted), moved=packed.nbytes + rows * cols * dtype.itemsize, **COPY,
        )  # fmt: skip


def _layouts(setting: Setting) -> Iterator[tuple[str, WordLayout, Scales]]:
    """Layouts of each form of memory, with scales as their formats have them."""
    rows, cols = _shape(setting)

    def floats(group: int, together: int = 1) -> torch.Tensor:
        return setting.normal(-(-rows // together), -(-cols // group)).half()

    zero = setting.bytes(rows, cols // 32, below=16)
    tiny = setting.bytes(rows, cols // 16, below=126)
    whole = setting.normal(1)
    yield "compressed-tensors", word_layouts.along_inputs(4, -8), Scales(floats(128), 128)
    zeros = Scales(floats(32), 32, zero=zero)
    yield "compressed-tensors zeros", word_layouts.along_inputs(4, 0), zeros
    if not setting.tiny:
        yield "gptq", word_layouts.gptq(4), Scales(floats(128), 128)
        yield "onnx", word_layouts.in_bytes(4, 0), zeros
        yield "int8", word_layouts.INT8, Scales(floats(cols), 0)
        yield "trtllm int4", word_layouts.INT4_ROWS, Scales(floats(128), 128)
        yield "mlc4", word_layouts.mlc(4, 32, own=False, transposed=False), Scales(floats(32), 32)
        yield "mlc3", word_layouts.mlc(3, 40, own=False, transposed=False), Scales(floats(40), 40)
        yield "fp8 blocks", word_layouts.fp8(), Scales(floats(128, 128).float(), 128, 128)
    yield "awq", word_layouts.awq(0), zeros
    yield "nvfp4", word_layouts.fp4(), Scales(tiny, 16, kind="e4m3", whole=whole)


def _words(setting: Setting, name: str, layout: WordLayout, scales: Scales) -> Iterator[Case]:
    shape = _shape(setting)
    known = layout.tables()[1]
    codes = setting.bytes(*shape, below=int(known[known < word_layouts.NO_CODE].max()) + 1)
    packed = words.pack(codes, layout, body="plain")
    on_cpu = Scales(scales.values.cpu(), scales.group, scales.together, _cpu(scales.zero),
                    scales.kind, _cpu(scales.whole))  # fmt: skip
    of = f"{name} {shape[0]} x {shape[1]}"
    moved = nbytes(codes, packed)

    def packed_as(found: torch.Tensor) -> float:
        return unlike(found.cpu(), words.pack(codes.cpu(), layout, body="cpu"))

    def values(found: torch.Tensor) -> float:
        return unlike(found.cpu(), words.dequantize(packed.cpu(), on_cpu, layout, shape,
                                                    torch.float16, body="cpu"))  # fmt: skip

    yield Case("words.pack", of, lambda: words.pack(codes, layout, body="gpu"), packed_as,
               moved=moved, **COPY)  # fmt: skip
    yield Case("words.unpack", of, lambda: words.unpack(packed, layout, shape, body="gpu"),
               lambda found: unlike(found, codes), moved=moved, **COPY)  # fmt: skip
    yield Case(
        "words.dequantize", f"{of} float16",
        lambda: words.dequantize(packed, scales, layout, shape, torch.float16, body="gpu"), values,
        moved=nbytes(packed, scales.values, scales.zero) + 2 * shape[0] * shape[1], **COPY,
    )  # fmt: skip


def _shape(setting: Setting) -> tuple[int, int]:
    shape: tuple[int, int] = setting.sizes((14336, 4096), (8, 256))
    return shape


def _cpu(one: torch.Tensor | None) -> torch.Tensor | None:
    return None if one is None else one.cpu()


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
