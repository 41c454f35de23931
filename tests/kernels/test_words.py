"""Words as the formats' own packers make them, and values as their grids decode them: bit for bit.

The bodies `plain` and `cpu`; what a GPU runs is held against them in `gpu/test_words.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from qconvert.formats.mlc import words as mlc_words
from qconvert.formats.mlc.schemes import SCHEMES
from qconvert.formats.mlc.schemes import Scheme as MlcScheme
from qconvert.formats.onnx import packing
from qconvert.formats.onnx.kinds import Kind
from qconvert.formats.serving.container import Linear
from qconvert.formats.serving.layouts.awq import Awq
from qconvert.formats.serving.layouts.float_quantized import FloatQuantized
from qconvert.formats.serving.layouts.fp4 import MxFp4, NvFp4
from qconvert.formats.serving.layouts.gptq import Gptq
from qconvert.formats.serving.layouts.int4_rows import Int4Rows
from qconvert.formats.serving.layouts.int_quantized import IntQuantized, in_columns
from qconvert.formats.serving.layouts.pack_quantized import PackQuantized
from qconvert.formats.serving.schemes import scheme_named
from qconvert.formats.tensor import QuantizedTensor
from qconvert.formats.trtllm.signed import Signed
from qconvert.kernels import word_layouts as known
from qconvert.kernels import words
from qconvert.kernels.minifloat import E2M1, E4M3
from qconvert.kernels.word_layouts import Scales, WordLayout

BODIES = ["plain", "cpu"]
Arrays = Mapping[str, Any]


def sample(grid: Any, shape: tuple[int, int], seed: int = 0) -> QuantizedTensor:
    """Codes of all kinds. Scales of few bits where a file rounds them, else of any."""
    random = np.random.default_rng(seed)
    rows, cols = shape
    groups = -(-cols // (grid.group or cols))
    codes = random.integers(0, len(grid.levels), shape).astype(np.uint8)
    codes.reshape(-1)[:1], codes.reshape(-1)[-1:] = len(grid.levels) - 1, 0
    probe = grid.unpack(np.zeros((1, grid.row_bytes(cols)), np.uint8), cols).params
    whole = random.integers(128, 256, (rows, groups)) * 2.0 ** random.integers(-14, -6, groups)
    params: dict[str, Any] = {"d": whole.astype(np.float32)}
    if "scale" in probe:
        params = {"scale": random.integers(1, 0x7F, (rows, groups), dtype=np.uint8)}
        params["amax"] = np.full((rows, 1), 3.3, np.float32)
    elif "exponent" in probe:
        params = {"exponent": random.integers(0, 250, (rows, groups), dtype=np.uint8)}
        params["exponent"][0, 0] = 0
    elif probe["d"].dtype == np.float32:
        params["d"] = random.lognormal(-5, 2, (rows, groups)).astype(np.float32)
    else:
        params["d"] *= random.choice([-1, 1], params["d"].shape) if not grid.has_offset else 1
    if "zero" in probe:
        params["zero"] = random.integers(0, len(grid.levels), (rows, groups), dtype=np.uint8)
    if grid.together > 1:
        starts = np.arange(rows) // grid.together * grid.together
        params = {name: values[starts] for name, values in params.items()}
    if hasattr(grid, "bound"):
        params = {name: one[:1].repeat(rows, 0) if name == "d" else one
                  for name, one in params.items()}  # fmt: skip
    kept = {name: values.astype(probe[name].dtype) for name, values in params.items()}
    return QuantizedTensor(grid.name, codes, kept)


def tensor(array: Any) -> torch.Tensor:
    """As torch sees an array of a file; uint16 is bfloat16."""
    found = np.ascontiguousarray(array)
    if found.dtype == np.uint16:
        return torch.from_numpy(found.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(found.view(np.int32) if found.dtype == np.uint32 else found)


def zeros_of(stored: torch.Tensor, layout: WordLayout, shape: tuple[int, int]) -> torch.Tensor:
    return words.unpack(stored, layout, shape, body="plain")


def compressed(arrays: Arrays, group: int, shape: tuple[int, int], bits: int) -> Scales:
    values, zero = tensor(arrays["weight_scale"]), None
    if "weight_zero_point" in arrays:
        stored = tensor(arrays["weight_zero_point"])
        zero = zeros_of(stored, known.along_outputs(bits), (shape[0], values.shape[1]))
    return Scales(values, group, zero=zero)


def awq(arrays: Arrays, group: int, shape: tuple[int, int], bits: int) -> Scales:
    values = tensor(arrays["scales"]).T
    zero = zeros_of(tensor(arrays["qzeros"]), known.awq(0), (shape[0], values.shape[1]))
    return Scales(values, group, zero=zero)


def turned(arrays: Arrays, group: int, shape: tuple[int, int], bits: int) -> Scales:
    return Scales(tensor(arrays["scales"]).T, group)


def in_rows(arrays: Arrays, group: int, shape: tuple[int, int], bits: int) -> Scales:
    return Scales(tensor(arrays["weight_scale"]), group)


def in_blocks(arrays: Arrays, group: int, shape: tuple[int, int], bits: int) -> Scales:
    return Scales(tensor(arrays["weight_scale"]), group, together=128)


def whole(arrays: Arrays, group: int, shape: tuple[int, int], bits: int) -> Scales:
    return Scales(tensor(arrays["weight_scale"]), group, together=0)


def powers(arrays: Arrays, group: int, shape: tuple[int, int], bits: int) -> Scales:
    return Scales(tensor(arrays["weight_scale"]), group, kind="e8m0")


def nvfp4(arrays: Arrays, group: int, shape: tuple[int, int], bits: int) -> Scales:
    """ModelOpt's form, which stores what the grid multiplies by."""
    factor = tensor(arrays["whole"])
    return Scales(tensor(arrays["weight_scale"]), group, kind="e4m3", whole=factor)


SERVED: Mapping[str, tuple[Any, str, WordLayout, Callable[..., Scales]]] = {
    "compressed": (PackQuantized(), "w4a16-g32", known.along_inputs(4, -8), compressed),
    "compressed zeros": (PackQuantized(), "w4a16-g32-asym", known.along_inputs(4, 0), compressed),
    "compressed 8": (PackQuantized(), "w8a16-channel", known.along_inputs(8, -128), compressed),
    "compressed 8 zeros": (
        PackQuantized(), "w8a16-g32-asym", known.along_inputs(8, 0), compressed),
    "gptq": (Gptq(), "w4a16-g32", known.gptq(4), turned),
    "gptq 8": (Gptq(), "w8a16-g32", known.gptq(8), turned),
    "awq": (Awq(), "w4a16-g32", known.awq(0), awq),
    "awq zeros": (Awq(), "w4a16-g64-asym", known.awq(0), awq),
    "int4 rows": (Int4Rows(in_columns), "w4a16-g32", known.INT4_ROWS, in_rows),
    "int8": (IntQuantized(), "w8a8", known.INT8, in_rows),
    "fp8": (FloatQuantized("weight_scale", in_columns), "fp8-channel", known.fp8(), in_rows),
    "fp8 tensor": (FloatQuantized("weight_scale", in_columns), "fp8-tensor", known.fp8(), whole),
    "fp8 block": (FloatQuantized("weight_scale", in_columns), "fp8-block", known.fp8(), in_blocks),
    "nvfp4": (NvFp4("weight_packed", "whole", (1,), False), "nvfp4", known.fp4(), nvfp4),
    "mxfp4": (MxFp4(), "mxfp4", known.fp4(), powers),
}  # fmt: skip


def equal(found: torch.Tensor, wanted: Any) -> bool:
    """Bit for bit, floats too."""
    kind = {4: torch.int32, 2: torch.int16, 1: torch.uint8}[found.element_size()]
    return bool(found.shape == wanted.shape) and torch.equal(
        found.view(kind), torch.as_tensor(wanted).contiguous().view(kind)
    )


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("name", SERVED)
def test_layouts_of_serving_programs(name: str, body: Any) -> None:
    packer, scheme_name, layout, scales_of = SERVED[name]
    scheme = scheme_named(scheme_name)
    grid: Any = scheme.grid
    span = grid.group or 8
    for seed, shape in enumerate([(8, span), (24, 3 * span), (136, 2 * span)]):
        quantized = sample(grid, shape, seed)
        linear = Linear("m", shape, scheme)
        arrays = {key[2:]: one for key, one in packer.pack(linear, quantized, "BF16").items()}
        stored = tensor(arrays[packer.marker])
        packed = words.pack(torch.from_numpy(quantized.codes), layout, body=body)
        assert torch.equal(packed, stored.view(packed.dtype))
        codes = words.unpack(stored, layout, shape, body=body)
        assert torch.equal(codes, torch.from_numpy(quantized.codes))
        scales = scales_of(arrays, grid.group, shape, scheme.bits)
        values = words.dequantize(stored, scales, layout, shape, body=body)
        wanted = torch.from_numpy(grid.decode(quantized))
        if name == "awq":  # a middle of 8 is a zero point: what is 0 is +0
            wanted += 0
        assert equal(values, wanted)
        for dtype in (torch.float16, torch.bfloat16):
            rounded = words.dequantize(stored, scales, layout, shape, dtype, body=body)
            assert equal(rounded, wanted.to(dtype))


def test_zero_points_of_gptq() -> None:
    linear = Linear("m", (16, 64), scheme_named("w4a16-g32"))
    arrays = Gptq().pack(linear, sample(linear.scheme.grid, linear.shape), "F16")
    zero = torch.full((16, 2), 8, dtype=torch.uint8)
    packed = words.pack(zero, known.gptq_zeros(4), body="plain")
    assert torch.equal(packed, tensor(arrays["m.qzeros"]))


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("scheme", [one for one in SCHEMES.values() if one.quantizes])
def test_mlc(scheme: MlcScheme, body: Any) -> None:
    """Its own grids round what they decode to the model's type: so does `dequantize` to it."""
    transposed = scheme.layout == "KN"
    kind = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}[scheme.dtype]
    for own in (False, True):
        layout = known.mlc(scheme.bits, scheme.group, own=own, transposed=transposed)
        for shape in ((1, 1), (3, 2 * scheme.group), (7, 3 * scheme.group - 9)):
            grid = scheme.grid(compatible=own)
            quantized = sample(grid, shape)
            if own:
                random = np.random.default_rng(1)
                quantized = grid.quantize(random.normal(size=shape).astype(np.float32))
            stored, scale = mlc_words.encode(quantized, scheme, kind, compatible=own)
            packed = words.pack(torch.from_numpy(quantized.codes), layout, body=body)
            assert torch.equal(packed, tensor(stored.T if transposed else stored))
            codes = words.unpack(packed, layout, shape, body=body)
            assert torch.equal(codes, torch.from_numpy(quantized.codes))
            dtype = getattr(torch, scheme.dtype)
            scales = Scales(tensor(scale), scheme.group)
            found = words.dequantize(packed, scales, layout, shape, dtype, body=body)
            assert equal(found, torch.from_numpy(grid.decode(quantized)).to(dtype))


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_onnx(bits: int, symmetric: bool, body: Any) -> None:
    kind = Kind(bits, 16, symmetric)
    grid: Any = kind.grid
    quantized = sample(grid, (5, 48))
    lowest = -(1 << bits - 1) if symmetric else 0
    layout = known.in_bytes(kind.field, lowest, kind.shift)
    packed = words.pack(torch.from_numpy(quantized.codes), layout, body=body)
    assert np.array_equal(packed.numpy(), packing.code_bytes(quantized, kind))
    zero = None
    if not symmetric:
        stored = tensor(packing.zero_bytes(quantized, kind))  # three of them in two bytes
        zero = words.unpack(stored, known.in_bytes(kind.field, 0), (5, 3), body=body)
        assert np.array_equal(zero.numpy(), quantized.params["zero"])
        again = words.pack(zero, known.in_bytes(kind.field, 0), body=body)
        assert torch.equal(again, stored)
    scales = Scales(tensor(packing.scales(quantized)), 16, zero=zero)
    assert equal(words.dequantize(packed, scales, layout, (5, 48), body=body),
                 grid.decode(quantized))  # fmt: skip
    if bits in (4, 8):
        added = lowest if symmetric else 0
        flat = words.pack(torch.from_numpy(quantized.codes.reshape(1, -1)),
                          known.in_bytes(bits, lowest, added), body=body)  # fmt: skip
        assert np.array_equal(flat[0].numpy(), packing.elements(quantized.codes, kind, bits))


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize(("kind", "layout"), [(E4M3, known.fp8), (E2M1, known.fp4)])
def test_small_floats_with_two_zeros(kind: Any, layout: Any, body: Any) -> None:
    signed, lying = Signed(kind), layout(2)
    codes = np.arange(len(signed.levels) // 2 * 2).astype(np.uint8)[None]
    bits = words.pack(torch.from_numpy(codes), replace(lying, bits=8), body=body)
    assert np.array_equal(bits.numpy(), signed.bits(codes))
    packed = words.pack(torch.from_numpy(codes), lying, body=body)
    assert np.array_equal(words.unpack(packed, lying, codes.shape, body=body), codes)
    scales = Scales(torch.ones(1, 1), 0)
    values = words.dequantize(packed, scales, lying, codes.shape, body=body)
    assert equal(values[0], signed.levels[codes[0]])


@pytest.mark.parametrize("body", BODIES)
def test_every_byte_of_e4m3_is_what_torch_makes_of_it(body: Any) -> None:
    every = torch.arange(256, dtype=torch.uint8)[None]
    scales = Scales(torch.ones(1, 1), 0)
    values = words.dequantize(every, scales, known.fp8(2), (1, 256), body=body)
    wanted = every.view(torch.float8_e4m3fn).float()
    finite = wanted.isfinite()
    assert equal(values[finite], wanted[finite])
    assert values[~finite].isnan().all()
    codes = words.unpack(every, known.fp8(), (1, 256), body=body)
    assert codes[~finite].tolist() == [255, 255]
    assert int(codes[finite].max()) == 252


def test_fewer_bits_and_the_smallest_shapes() -> None:
    codes = torch.tensor([[3, 2, 1, 0, 1]], dtype=torch.uint8)
    packed = words.pack(codes, known.along_inputs(2, -2))
    assert packed.tolist() == [[0b01_00_01_10_11]]
    assert words.unpack(packed, known.along_inputs(2, -2), (1, 5)).tolist() == codes.tolist()
    assert words.pack(codes, known.along_outputs(4)).tolist() == codes.tolist()


def test_what_does_not_fit_is_refused() -> None:
    layout = known.along_inputs(4, -8)
    packed = words.pack(torch.zeros(4, 32, dtype=torch.uint8), layout)
    with pytest.raises(ValueError, match="are wanted"):
        words.unpack(packed, layout, (4, 40))
    with pytest.raises(ValueError, match="scales"):
        words.dequantize(packed, Scales(torch.ones(4, 2), 32), layout, (4, 32))
    with pytest.raises(ValueError, match="zeros"):
        words.dequantize(
            packed, Scales(torch.ones(4, 1), 32, zero=torch.ones(4, 2)), layout, (4, 32)
        )
    with pytest.raises(ValueError, match="bytes"):
        words.pack(torch.zeros(4, 32), layout)


def test_scales_of_a_file_may_be_views() -> None:
    """[groups, rows] as AWQ and GPTQ store them, read transposed and not copied."""
    layout, scales = known.gptq(4), torch.rand(2, 8)
    packed = words.pack(torch.randint(0, 16, (8, 64), dtype=torch.uint8), layout)
    view = words.dequantize(packed, Scales(scales.T, 32), layout, (8, 64))
    copied = words.dequantize(packed, Scales(scales.T.contiguous(), 32), layout, (8, 64))
    assert torch.equal(view, copied)
