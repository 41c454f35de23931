"""Words in Triton, bit for bit what plain torch makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from qconvert.kernels import word_layouts as known
from qconvert.kernels import words
from qconvert.kernels.word_layouts import Scales, WordLayout

Shape = tuple[int, int]

LAYOUTS: Mapping[str, tuple[WordLayout, int, int]] = {  # codes, columns of a group
    "compressed": (known.along_inputs(4, -8), 16, 32),
    "compressed 2": (known.along_inputs(2, -2), 4, 16),
    "compressed 8": (known.along_inputs(8, -128), 256, 0),
    "zeros": (known.along_outputs(4), 16, 0),
    "gptq": (known.gptq(4), 16, 32),
    "gptq 8": (known.gptq(8), 256, 0),
    "gptq zeros": (known.gptq_zeros(4), 16, 0),
    "awq": (known.awq(0), 16, 32),
    "awq wide": (known.awq(0), 16, 10),
    "onnx": (known.in_bytes(4, -8), 16, 16),
    "onnx 3": (known.in_bytes(4, -4, 4), 8, 16),
    "onnx 2": (known.in_bytes(2, 0), 4, 16),
    "mlc 4": (known.mlc(4, 32, own=False, transposed=False), 16, 32),
    "mlc 3": (known.mlc(3, 40, own=False, transposed=False), 8, 40),
    "mlc 3 turned": (known.mlc(3, 40, own=True, transposed=True), 7, 40),
    "int4 rows": (known.INT4_ROWS, 16, 32),
    "int4 rows, tiles": (known.INT4_ROWS, 16, 128),
    "int8, tiles": (known.INT8, 256, 128),
    "int8": (known.INT8, 256, 0),
    "fp8": (known.fp8(), 253, 0),
    "fp8 signed": (known.fp8(2), 254, 0),
    "fp4": (known.fp4(), 15, 16),
    "fp4 signed": (known.fp4(2), 16, 16),
}
SHAPES = [(1, 1), (3, 37), (24, 160)]


def codes_of(count: int, shape: Shape, device: torch.device) -> torch.Tensor:
    made = torch.Generator().manual_seed(shape[0])
    return torch.randint(0, count, shape, dtype=torch.uint8, generator=made).to(device)


def floats(*shape: int, device: torch.device) -> torch.Tensor:
    """Of both signs and of many sizes, and a zero."""
    made = torch.Generator().manual_seed(len(shape))
    found = torch.randn(shape, generator=made) * torch.randn(shape, generator=made).exp2()
    found.view(-1)[0] = 0
    return found.to(device)


def same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Bit for bit, and NaN where NaN is."""
    kind = {4: torch.int32, 2: torch.int16, 1: torch.uint8}[found.element_size()]
    if found.dtype.is_floating_point:
        found, wanted = found.nan_to_num(nan=1e30), wanted.nan_to_num(nan=1e30)
    return found.dtype == wanted.dtype and torch.equal(found.view(kind), wanted.view(kind))


def alike(
    packed: torch.Tensor, scales: Scales, layout: WordLayout, shape: Shape, dtype: Any
) -> bool:
    found, wanted = (
        words.dequantize(packed, scales, layout, shape, dtype, body=body)  # type: ignore[arg-type]
        for body in ("gpu", "plain")
    )
    return same(found, wanted)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_codes_go_in_and_out(name: str, shape: Shape, device: torch.device) -> None:
    layout, count, _ = LAYOUTS[name]
    codes = codes_of(count, shape, device)
    packed = words.pack(codes, layout, body="gpu")
    assert same(packed, words.pack(codes, layout, body="plain"))
    assert same(words.unpack(packed, layout, shape, body="gpu"), codes)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_values(name: str, shape: Shape, device: torch.device) -> None:
    layout, count, group = LAYOUTS[name]
    packed = words.pack(codes_of(count, shape, device), layout, body="plain")
    groups = -(-shape[1] // group) if group else 1
    values = floats(shape[0], groups, device=device)
    assert alike(packed, Scales(values, group), layout, shape, torch.float32)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["compressed", "awq"])
def test_types_and_zero_points(
    name: str, dtype: torch.dtype, stored: torch.dtype, device: torch.device
) -> None:
    (layout, count, group), shape = LAYOUTS[name], (8, 96)
    packed = words.pack(codes_of(count, shape, device), layout, body="plain")
    zero = codes_of(16, (3, 8), device).T
    values = floats(3, 8, device=device).T.to(stored)
    assert alike(packed, Scales(values, group, zero=zero), layout, shape, dtype)


@pytest.mark.parametrize("together", [0, 1, 4])
def test_scales_of_blocks_and_of_tensors(together: int, device: torch.device) -> None:
    layout, shape = known.fp8(), (10, 64)
    every = torch.arange(640, device=device).remainder(256).to(torch.uint8).view(shape)  # NaN too
    rows = -(-10 // together) if together else 1
    scales = Scales(floats(rows, 2, device=device).abs(), 32, together)
    assert alike(every, scales, layout, shape, torch.float32)
    assert same(words.unpack(every, layout, shape, body="gpu"),
                words.unpack(every, layout, shape, body="plain"))  # fmt: skip


@pytest.mark.parametrize("kind", ["e4m3", "e8m0"])
def test_every_scale_of_a_byte(kind: Any, device: torch.device) -> None:
    layout, shape = known.fp4(), (4, 64 * 16)
    packed = words.pack(codes_of(15, shape, device), layout, body="plain")
    values = torch.arange(256, dtype=torch.uint8, device=device).view(4, 64)
    if kind == "e8m0":
        values = values.clamp(max=250)  # then no product overflows
    whole = torch.tensor([1.7e-3], device=device) if kind == "e4m3" else None
    scales = Scales(values, 16, kind=kind, whole=whole)
    assert alike(packed, scales, layout, shape, torch.float32)


def test_bytes_that_are_no_words(device: torch.device) -> None:
    """A view that begins at an odd byte is read a byte at a time."""
    layout, shape = known.fp4(), (3, 64)
    codes = codes_of(15, shape, device)
    aside = torch.zeros(1 + 96, dtype=torch.uint8, device=device)[1:].view(3, 32)
    aside.copy_(words.pack(codes, layout, body="plain"))
    assert aside.data_ptr() % 4
    assert same(words.unpack(aside, layout, shape, body="gpu"), codes)
