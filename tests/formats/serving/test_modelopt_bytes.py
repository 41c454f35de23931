"""What nvidia-modelopt 0.47.0 wrote is read, and written again to the byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from qconvert.formats.serving.container import Linear, containers
from qconvert.formats.serving.schemes import scheme_named

EXCERPT = Path(__file__).parents[2] / "data" / "modelopt" / "excerpt.safetensors"
CONTAINER = containers()["modelopt"]


def stored(prefix: str, linear: str) -> dict[str, np.ndarray]:
    """The tensors of one linear as `m.weight`, ...: bytes of what numpy has no type for."""
    found = {}
    with safe_open(EXCERPT, "pt") as file:
        for name in file.keys():
            start = f"{prefix}/{linear}."
            if name.startswith(start):
                tensor = file.get_tensor(name)
                small = tensor.dtype == torch.float8_e4m3fn
                found[f"m.{name.removeprefix(start)}"] = (
                    tensor.view(torch.uint8) if small else tensor
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
