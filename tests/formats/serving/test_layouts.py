"""Every layout holds the codes that it was given, and a reader of its own finds them."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from qconvert.formats.floats import decode_floats
from qconvert.formats.refusal import Refused
from qconvert.formats.serving.container import SIZES, Linear, containers
from qconvert.formats.serving.schemes import scheme_named
from qconvert.formats.tensor import QuantizedTensor
from qconvert.kernels.minifloat import E2M1, E4M3

NUMPY = {"F32": "float32", "F16": "float16", "BF16": "uint16", "F8_E4M3": "uint8", "U8": "uint8",
         "I8": "int8", "I32": "int32", "I64": "int64"}  # fmt: skip


def parts(arrays: Any) -> dict[str, Any]:
    return {name.rpartition(".")[2]: array for name, array in arrays.items()}


def stored_codes(case: Any, codes: np.ndarray) -> np.ndarray:
    """Ours as the file has them: bits of small floats."""
    kind = {"fp8": E4M3, "nvfp4": E2M1, "mxfp4": E2M1}.get(case.scheme.form)
    return codes if kind is None else kind.bits(codes)


def test_an_independent_reader_finds_codes_and_values(case: Any, transcribed: ModuleType) -> None:
    grid = "int" if case.scheme.form == "int" else case.scheme.grid_name
    reader = transcribed.READERS[case.container.name, grid, case.scheme.activations]
    for seed, shape in enumerate(case.shapes):
        tensor = case.tensor(shape, seed)
        arrays = parts(case.container.pack(case.linear(shape), tensor, "BF16"))
        codes, values = reader(arrays, shape, case.scheme.bits, case.scheme.group)
        np.testing.assert_array_equal(codes, stored_codes(case, tensor.codes))
        ours = case.scheme.grid.decode(tensor)
        if case.scheme.form == "nvfp4":  # the scale of the tensor is stored as a reciprocal
            np.testing.assert_allclose(values, ours, rtol=3e-7)
        else:
            np.testing.assert_array_equal(np.float32(values), ours)


@pytest.mark.parametrize("float_type", ["BF16", "F16", "F32"])
def test_codes_and_parameters_come_back(
    case: Any, float_type: str, alike: Callable[..., bool]
) -> None:
    for seed, shape in enumerate(case.shapes):
        tensor, linear = case.tensor(shape, seed), case.linear(shape)
        arrays = case.container.pack(linear, tensor, float_type)
        assert alike(case.container.unpack(linear, arrays), tensor)


def test_the_tensors_are_those_of_the_format(case: Any) -> None:
    """No more and no less, of the promised type and shape (traps 14 and 15)."""
    for shape in case.shapes:
        linear = case.linear(shape)
        entries = case.container.entries(linear, "BF16")
        arrays = case.container.pack(linear, case.tensor(shape), "BF16")
        assert {entry.name for entry in entries} == set(arrays)
        for entry in entries:
            found = arrays[entry.name]
            assert (found.shape, found.dtype.name) == (entry.shape, NUMPY[entry.dtype]), entry
            assert entry.nbytes == found.nbytes


def test_bytes_are_those_of_the_scheme(case: Any) -> None:
    """Within 2 % of codes, scales and zero points (trap 4: four bytes for each weight)."""
    shape = (1024, 1024)
    scheme = case.scheme
    groups = 1024 // (scheme.group or 1024)
    wide = scheme.form in ("fp8", "int") and scheme.activations is not None
    wide = wide or case.container.name == "modelopt"  # float32
    scale = {"nvfp4": 1, "mxfp4": 1}.get(scheme.form, 4 if wide else 2)
    zeros = scheme.bits / 8 if case.container.name in ("gptq", "awq") else 0
    zeros = zeros if scheme.symmetric else scheme.bits / 8
    rows = 1024 / scheme.grid.together
    expected = 1024 * 1024 * scheme.bits / 8 + rows * groups * (scale + zeros)
    entries = case.container.entries(case.linear(shape), "BF16")
    assert sum(entry.nbytes for entry in entries) == pytest.approx(expected, rel=0.02)
    assert {entry.dtype for entry in entries} <= set(SIZES)


def test_code_order_matters(case: Any) -> None:
    """One code moved to its neighbour's place changes the file, and what is read of it."""
    shape = case.shapes[-1]
    tensor, linear = case.tensor(shape), case.linear(shape)
    codes = tensor.codes.copy()
    codes.reshape(-1)[[0, -1]] = codes.reshape(-1)[[-1, 0]]
    moved = QuantizedTensor(tensor.grid, codes, tensor.params)
    arrays = case.container.pack(linear, moved, "F16")
    assert not np.array_equal(case.container.unpack(linear, arrays).codes, tensor.codes)


@pytest.mark.parametrize(
    ("container", "float_type", "scale"),
    [("gptq", "BF16", 1 + 2**-11), ("awq", "BF16", 1e-9),
     ("compressed-tensors", "F16", 1 + 2**-11), ("compressed-tensors", "BF16", 1 + 2**-8),
     ("gptq", "F16", 70000.0), ("awq", "F16", np.nan)],
)  # fmt: skip
def test_a_scale_is_never_rounded(container: str, float_type: Any, scale: float, make: Any) -> None:
    scheme = scheme_named("w4a16-g32")
    tensor = make(scheme, (8, 64))
    params = {"d": tensor.params["d"].astype(np.float32)}
    params["d"][3, 1] = scale
    linear = Linear("m", (8, 64), scheme)
    with pytest.raises(ValueError, match=r"^m\.|m\.scales|m\.weight_scale"):
        containers()[container].pack(
            linear, QuantizedTensor(tensor.grid, tensor.codes, params), float_type
        )


def test_bfloat16_scales_are_those_of_torch(make: Any) -> None:
    import torch

    scheme = scheme_named("w4a16-g32")
    tensor = make(scheme, (8, 64))
    arrays = containers()["compressed-tensors"].pack(Linear("m", (8, 64), scheme), tensor, "BF16")
    stored = torch.from_numpy(arrays["m.weight_scale"].view(np.int16)).view(torch.bfloat16)
    np.testing.assert_array_equal(stored.float().numpy(), tensor.params["d"].astype(np.float32))
    assert np.array_equal(decode_floats(arrays["m.weight_scale"], "BF16"), stored.float().numpy())


def test_rows_that_share_a_scale_must_agree(make: Any) -> None:
    for name in ("fp8-tensor", "fp8-block"):
        scheme = scheme_named(name)
        tensor = make(scheme, (130, 128))
        params = {"d": tensor.params["d"].copy()}
        params["d"][5] *= 2
        with pytest.raises(ValueError, match="differs between rows"):
            containers()["compressed-tensors"].pack(
                Linear("m", (130, 128), scheme),
                QuantizedTensor(tensor.grid, tensor.codes, params), "BF16",
            )  # fmt: skip


def test_a_tensor_of_another_grid_or_shape_is_not_packed(make: Any) -> None:
    scheme = scheme_named("w4a16-g32")
    for tensor in (make(scheme, (8, 32)), make(scheme_named("w4a16-g64"), (8, 64))):
        with pytest.raises(ValueError, match="wants int4_g32_portable"):
            containers()["gptq"].pack(Linear("m", (8, 64), scheme), tensor, "F16")


@pytest.mark.parametrize(
    ("container", "scheme", "shape", "match"),
    [("gptq", "w4a16-g32", (12, 64), "12 outputs"), ("gptq", "w4a16-channel", (8, 12), "12 inputs"),
     ("awq", "w4a16-g32", (12, 64), "12 outputs"), ("awq", "w4a16-g64", (8, 96), "whole groups"),
     ("compressed-tensors", "w4a16-g64", (8, 96), "whole groups"),
     ("modelopt", "nvfp4", (8, 24), "whole groups"),
     ("modelopt", "w4a16-g128", (8, 192), "whole groups"),
     ("modelopt", "w4a16-channel", (7, 128), "7 outputs")],
)  # fmt: skip
def test_shapes_without_room_are_refused(
    container: str, scheme: str, shape: tuple[int, int], match: str
) -> None:
    with pytest.raises(Refused, match=match) as refused:
        containers()[container].entries(Linear("m", shape, scheme_named(scheme)), "F16")
    assert all(reason.remedy for reason in refused.value.reasons)


def test_a_permuted_g_idx_is_refused(make: Any) -> None:
    """vLLM drops it and computes with other weights."""
    scheme = scheme_named("w4a16-g32")
    linear, container = Linear("m", (8, 64), scheme), containers()["gptq"]
    arrays = dict(container.pack(linear, make(scheme, (8, 64)), "F16"))
    arrays["m.g_idx"] = arrays["m.g_idx"][::-1].copy()
    with pytest.raises(Refused, match="g_idx"):
        container.unpack(linear, arrays)


def test_zero_points_in_gptq_are_refused(make: Any) -> None:
    """vLLM never reads them. Version 1 holds the zero point minus one: 7, not 8."""
    scheme = scheme_named("w4a16-g32")
    linear, container = Linear("m", (8, 64), scheme), containers()["gptq"]
    arrays = dict(container.pack(linear, make(scheme, (8, 64)), "F16"))
    assert (arrays["m.qzeros"] == 0x77777777).all()
    arrays["m.qzeros"] = arrays["m.qzeros"] + 0x11111111
    with pytest.raises(Refused, match="qzeros"):
        container.unpack(linear, arrays)


def test_nan_among_fp8_weights_is_refused(make: Any) -> None:
    scheme = scheme_named("fp8-channel")
    linear, container = Linear("m", (8, 64), scheme), containers()["compressed-tensors"]
    arrays = dict(container.pack(linear, make(scheme, (8, 64)), "BF16"))
    arrays["m.weight"] = np.full((8, 64), 0x7F, np.uint8)
    with pytest.raises(Refused, match=r"m\.weight"):
        container.unpack(linear, arrays)
