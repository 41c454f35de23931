"""compressed-tensors' own code reads what we pack and takes what we say. It must be there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.mx_utils import decompress_mx_scale
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from compressed_tensors.quantization import QuantizationConfig

from qconvert.formats.serving.container import Linear, Told, containers
from qconvert.formats.serving.schemes import schemes
from qconvert.kernels.minifloat import E2M1, E4M3

CONTAINER = containers()["compressed-tensors"]
PACKED = [one.name for one in schemes().values() if one.form == "int" and one.activations is None]


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("rows", [1, 9, 24])
def test_its_unpacker_finds_codes_and_zero_points(name: str, rows: int, make: Any) -> None:
    scheme = schemes()[name]
    shape = (rows, 3 * (scheme.group or 40))
    tensor, linear = make(scheme, shape), Linear("m", shape, scheme)
    arrays = CONTAINER.pack(linear, tensor, "BF16")
    middle = 2 ** (scheme.bits - 1)
    codes = unpack_from_int32(
        torch.from_numpy(arrays["m.weight_packed"]), scheme.bits,
        torch.Size(arrays["m.weight_shape"].tolist()),
    )  # fmt: skip
    np.testing.assert_array_equal(codes.numpy().astype(int) + middle, tensor.codes)
    if not scheme.symmetric:
        zeros = unpack_from_int32(
            torch.from_numpy(arrays["m.weight_zero_point"]), scheme.bits,
            torch.Size((rows, 3 if scheme.group else 1)), packed_dim=0,
        )  # fmt: skip
        np.testing.assert_array_equal(zeros.numpy().astype(int) + middle, tensor.params["zero"])


@pytest.mark.parametrize("name", ["nvfp4", "nvfp4a16", "mxfp4"])
@pytest.mark.parametrize("rows", [1, 3])
def test_its_unpacker_finds_fp4(name: str, rows: int, make: Any) -> None:
    scheme = schemes()[name]
    shape = (rows, 3 * scheme.group)
    tensor, linear = make(scheme, shape), Linear("m", shape, scheme)
    arrays = CONTAINER.pack(linear, tensor, "BF16")
    values = unpack_fp4_from_uint8(torch.from_numpy(arrays["m.weight_packed"]), *shape)
    np.testing.assert_array_equal(values.float().numpy(), E2M1.levels[tensor.codes])
    stored = torch.from_numpy(arrays["m.weight_scale"])
    if scheme.form == "mxfp4":
        scale = decompress_mx_scale(stored).float().numpy()
        expected = 2.0 ** (tensor.params["exponent"].astype(int) - 127)
    else:
        scale = stored.view(torch.float8_e4m3fn).float().numpy()
        expected = E4M3.levels[E4M3.codes(tensor.params["scale"])]
    np.testing.assert_array_equal(scale, expected)


HELD = [name for name, one in schemes().items() if not CONTAINER.problems(one)]


@pytest.mark.parametrize("name", HELD)
def test_its_configuration_takes_ours(name: str) -> None:
    """Every key validates, and means what we mean."""
    scheme = schemes()[name]
    told = Told([Linear("model.layers.0.mlp.down_proj", (256, 256), scheme)], ["lm_head"], "fp8")
    fields = CONTAINER.config(told).quantization
    assert fields is not None
    config = QuantizationConfig.model_validate(fields)
    group = config.config_groups["group_0"]
    assert group.targets == ["Linear"]
    assert group.weights.num_bits == scheme.bits
    assert group.weights.symmetric == scheme.symmetric
    assert (group.weights.group_size or 0) == (scheme.group if scheme.grid.together == 1 else 0)
    assert (group.input_activations is None) == (scheme.activations is None)
    if scheme.activations is not None:
        assert (group.input_activations.dynamic is False) == scheme.static
    assert config.ignore == ["lm_head"]
    assert config.kv_cache_scheme.num_bits == 8


def test_torch_reads_our_fp8(make: Any) -> None:
    scheme = schemes()["fp8-channel"]
    tensor = make(scheme, (3, 40))
    arrays = CONTAINER.pack(Linear("m", (3, 40), scheme), tensor, "BF16")
    weight = torch.from_numpy(arrays["m.weight"]).view(torch.float8_e4m3fn).float()
    scaled = weight * torch.from_numpy(arrays["m.weight_scale"])
    np.testing.assert_array_equal(scaled.numpy(), scheme.grid.decode(tensor))
