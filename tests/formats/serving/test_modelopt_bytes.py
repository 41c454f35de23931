"""What nvidia-modelopt 0.47.0 wrote is read, and written again to the byte."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from qconvert.formats.floats import decode_floats
from qconvert.formats.serving.container import Linear, containers
from qconvert.formats.serving.schemes import scheme_named

DATA = Path(__file__).parents[2] / "data" / "modelopt"
EXCERPT = DATA / "excerpt.safetensors"
COLUMNS = DATA / "columns.safetensors"
CONTAINER = containers()["modelopt"]
BITS = {torch.float8_e4m3fn: torch.uint8, torch.bfloat16: torch.uint16}


def stored(prefix: str, linear: str, path: Path = EXCERPT) -> dict[str, np.ndarray]:
    """The tensors of one linear as `m.weight`, ...: bits of what numpy has no type for."""
    found = {}
    with safe_open(path, "pt") as file:
        for name in file.keys():
            start = f"{prefix}/{linear}."
            if name.startswith(start):
                tensor = file.get_tensor(name)
                bits = BITS.get(tensor.dtype)
                found[f"m.{name.removeprefix(start)}"] = (
                    tensor if bits is None else tensor.view(bits)
                ).numpy()
    return found


def without_minus_zero(name: str, array: np.ndarray, packed: bool) -> np.ndarray:
    """Zeros have their sign bit clear here, ModelOpt keeps the weight's sign."""
    if name != "m.weight":
        return array
    if not packed:
        return np.where(array == 0x80, 0, array)
    low, high = array & 15, array >> 4
    low, high = np.where(low == 8, 0, low), np.where(high == 8, 0, high)
    return low | high << 4


@pytest.mark.parametrize(
    ("prefix", "linear", "scheme"),
    [
        ("FP8_DEFAULT_CFG", "k_proj", "fp8-tensor"),
        ("FP8_PER_CHANNEL_PER_TOKEN_CFG", "q_proj", "fp8-channel"),
        ("FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG", "q_proj", "fp8-block"),
        ("NVFP4_DEFAULT_CFG", "q_proj", "nvfp4"),
        ("NVFP4_DEFAULT_CFG", "v_proj", "nvfp4"),
    ],
)
def test_read_and_written_again(prefix: str, linear: str, scheme: str, transcribed: Any) -> None:
    arrays = stored(prefix, linear)
    rows, width = arrays["m.weight"].shape
    packed = scheme == "nvfp4"
    one = Linear("m", (rows, width * (2 if packed else 1)), scheme_named(scheme))
    tensor = CONTAINER.unpack(one, arrays)
    again = CONTAINER.pack(one, tensor, "BF16")
    assert again.keys() == arrays.keys()
    for name, array in arrays.items():
        expected = without_minus_zero(name, array, packed)
        assert again[name].shape == expected.shape
        np.testing.assert_array_equal(again[name], expected, err_msg=name)
    key = ("modelopt", one.scheme.grid_name, one.scheme.activations)
    parts = {name.removeprefix("m."): array for name, array in arrays.items()}
    values = transcribed.READERS[key](parts, one.shape, one.scheme.bits, one.scheme.group)[1]
    np.testing.assert_allclose(values, one.scheme.grid.decode(tensor), rtol=3e-7)
    with safe_open(EXCERPT, "pt") as file:
        source = file.get_tensor(f"source/{linear}.weight").float().numpy()
    error = np.linalg.norm(values - source) / np.linalg.norm(source)
    assert error < (0.1 if packed else 0.03)


@pytest.mark.parametrize(
    ("prefix", "scheme"),
    [
        ("INT4_AWQ_CFG", "w4a16-g128"),
        ("W4A8_AWQ_BETA_CFG", "w4a8-fp8-g128"),
        ("INT8_SMOOTHQUANT_CFG", "w8a8-static"),
        ("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", "w4a16-g128"),
        ("INT8_WEIGHT_ONLY_CFG", "w8a16-channel"),
    ],
)
def test_integers_are_read_and_written_again(prefix: str, scheme: str, transcribed: Any) -> None:
    """Every byte of codes and scales; and with the vector of columns, the source is found again."""
    alone = prefix.endswith("WEIGHT_ONLY_CFG")
    linear = "q_proj" if alone else "o_proj"
    arrays = stored(prefix, linear, DATA / "integers.safetensors" if alone else COLUMNS)
    rows, cols = arrays["m.weight"].shape
    kind = scheme_named(scheme)
    one = Linear("m", (rows * 8 // kind.bits, cols), kind)
    tensor = CONTAINER.unpack(one, arrays)
    again = CONTAINER.pack(one, tensor, "BF16")
    assert again.keys() == {"m.weight", "m.weight_scale"}
    for name, array in again.items():
        assert array.dtype == arrays[name].dtype
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)
    parts = {name.removeprefix("m."): array for name, array in arrays.items()}
    reader = transcribed.READERS["modelopt", "int", kind.activations]
    values = np.array(reader(parts, one.shape, kind.bits, kind.group)[1])
    np.testing.assert_allclose(values, kind.grid.decode(tensor), rtol=3e-7)
    with safe_open(EXCERPT if alone else COLUMNS, "pt") as file:
        source = file.get_tensor(f"source/{linear}.weight").float().numpy()[: one.shape[0]]
    if not alone:
        assert CONTAINER.column_part(Linear("model.layers.0.self_attn.o_proj", one.shape, kind))
        values = values * decode_floats(arrays["m.pre_quant_scale"], "BF16")
    error = np.linalg.norm(values - source) / np.linalg.norm(source)
    assert error < (0.14 if kind.bits == 4 else 0.02)


def test_w4a8_scales_fit_float16_and_e4m3() -> None:
    """ModelOpt's `weight_scale_2` is the largest scale / 64; ours, a power of two, lies near it."""
    arrays = stored("W4A8_AWQ_BETA_CFG", "o_proj", COLUMNS)
    theirs = float(arrays["m.weight_scale_2"])
    joint = CONTAINER.joint(Linear("m", (8, 256), scheme_named("w4a8-fp8-g128")))
    assert joint is not None
    ours = float(joint.stored(theirs * 64))
    assert theirs < ours <= 16 / 7 * theirs


@pytest.mark.parametrize(
    ("grid", "prefix", "linear", "scheme"),
    [
        ("modelopt_fp8_channel", "FP8_PER_CHANNEL_PER_TOKEN_CFG", "q_proj", "fp8-channel"),
        ("modelopt_fp8_block128", "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG", "q_proj", "fp8-block"),
        ("modelopt_fp8_tensor_bf16", "FP8_DEFAULT_CFG", "k_proj", "fp8-tensor"),
        ("modelopt_nvfp4", "NVFP4_DEFAULT_CFG", "q_proj", "nvfp4"),
    ],
)
def test_layouts_keep_what_a_grid_keeps(grid: str, prefix: str, linear: str, scheme: str) -> None:
    """Nothing is lost on a grid with both zeros: all bytes are ModelOpt's, signs of zeros too."""
    arrays = stored(prefix, linear)
    kind = replace(scheme_named(scheme), grid_name=grid)
    rows, width = arrays["m.weight"].shape
    one = Linear("m", (rows, width * (2 if scheme == "nvfp4" else 1)), kind)
    again = CONTAINER.pack(one, CONTAINER.unpack(one, arrays), "BF16")
    assert again.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)
