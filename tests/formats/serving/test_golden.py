"""One group in each container, its bytes worked out by hand from the formats' descriptions.

The group: codes 0, 1, ... 15 and again, so that the lowest and the highest are in it; scale -0.5
(float16 0xB800, bfloat16 0xBF00); all rows alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qconvert.formats.serving.container import Linear, containers
from qconvert.formats.serving.schemes import scheme_named
from qconvert.formats.tensor import QuantizedTensor

ROWS, COLS = 8, 32


def packed(container: str, name: str, codes: Any, **params: Any) -> dict[str, str]:
    """Last part of a tensor's name -> its bytes in hexadecimal."""
    scheme = scheme_named(name)
    linear = Linear("m", codes.shape, scheme)
    tensor = QuantizedTensor(scheme.grid_name, codes, params)
    arrays = containers()[container].pack(linear, tensor, "BF16")
    return {key.removeprefix("m."): array.tobytes().hex() for key, array in arrays.items()}


def integers() -> Any:
    return np.tile(np.arange(16, dtype=np.uint8), (ROWS, COLS // 16))


def test_pack_quantized() -> None:
    """Low nibbles first: codes 0 to 7 are 0x76543210, in bytes 10 32 54 76."""
    found = packed("compressed-tensors", "w4a16-g32", integers(), d=np.full((8, 1), -0.5, "f2"))
    assert found == {
        "weight_packed": "1032547698badcfe" * 2 * ROWS,
        "weight_scale": "00bf" * ROWS,
        "weight_shape": "0800000000000000" + "2000000000000000",
    }


def test_pack_quantized_with_zero_points() -> None:
    """Zero points 0 to 7 of the eight rows share a word."""
    found = packed(
        "compressed-tensors", "w4a16-g32-asym", integers(),
        d=np.full((8, 1), 0.5, "f2"), zero=np.arange(8, dtype=np.uint8)[:, None],
    )  # fmt: skip
    assert found["weight_zero_point"] == "10325476"
    assert found["weight_scale"] == "003f" * ROWS


def test_gptq() -> None:
    """A word of eight inputs for each output; zero points 8 stored as 7."""
    found = packed("gptq", "w4a16-g32", integers(), d=np.full((8, 1), -0.5, "f2"))
    assert found == {
        "qweight": ("10325476" * ROWS + "98badcfe" * ROWS) * 2,
        "qzeros": "77777777",
        "scales": "00b8" * ROWS,
        "g_idx": "00000000" * COLS,
    }


def test_awq() -> None:
    """All outputs of an input are alike here: its word is that code eight times."""
    found = packed("awq", "w4a16-g32", integers(), d=np.full((8, 1), -0.5, "f2"))
    assert found == {
        "qweight": "".join(f"{code:x}" * 8 for code in [*range(16)] * 2),
        "qzeros": "88888888",
        "scales": "00b8" * ROWS,
    }


def test_awq_order_of_outputs() -> None:
    """Codes 0 to 7 of outputs 0 to 7: nibbles, low first, 0 2 4 6 1 3 5 7."""
    codes = np.repeat(np.arange(8, dtype=np.uint8)[:, None], COLS, axis=1)
    found = packed(
        "awq", "w4a16-g32-asym", codes,
        d=np.full((8, 1), 0.5, "f2"), zero=np.arange(8, 16, dtype=np.uint8)[:, None],
    )  # fmt: skip
    assert found["qweight"] == "20643175" * COLS
    assert found["qzeros"] == "a8ecb9fd"


def test_int_quantized() -> None:
    """Two's complement, float32 scales: -0.5 is 0xBF000000."""
    codes = np.array([[0, 1, 127, 128, 129, 255]], np.uint8)
    found = packed("compressed-tensors", "w8a8", codes, d=np.array([[-0.5]], "f4"))
    assert found == {"weight": "8081ff00017f", "weight_scale": "000000bf"}


FP8_CODES = np.array([[0, 1, 125, 126, 127, 252]], np.uint8)  # -448, -416, -2^-9, 0, 2^-9, 448


@pytest.mark.parametrize("container", ["compressed-tensors", "modelopt"])
def test_fp8(container: str) -> None:
    found = packed(container, "fp8-channel", FP8_CODES, d=np.array([[0.5]], "f4"))
    assert found == {"weight": "fefd8100017e", "weight_scale": "0000003f"}


@pytest.mark.parametrize(
    ("container", "scale"),
    [("compressed-tensors", "weight_scale"), ("fp8", "weight_scale_inv"),
     ("modelopt", "weight_scale")],
)  # fmt: skip
def test_fp8_block(container: str, scale: str) -> None:
    """The scale of a block once, and it multiplies."""
    codes = np.full((2, 128), 252, np.uint8)
    found = packed(container, "fp8-block", codes, d=np.full((2, 1), 0.5, "f4"))
    assert found == {"weight": "7e" * 256, scale: "0000003f"}


FP4_CODES = np.array([[*range(15), 7]], np.uint8)  # -6, -4, ... 0 ... 4, 6, 0


FP4_BYTES = "efcdab0921436507"  # nibbles f e d c b a 9 0 1 2 3 4 5 6 7 0, the first one low


def test_nvfp4() -> None:
    """amax 672 = 2688 / 4: the divisor is 4 (0x40800000), the multiplier 0.25 (0x3E800000)."""
    params = {"scale": np.array([[0x38]], np.uint8), "amax": np.array([[672]], "f4")}
    assert packed("compressed-tensors", "nvfp4", FP4_CODES, **params) == {
        "weight_packed": FP4_BYTES,
        "weight_scale": "38",
        "weight_global_scale": "00008040",
    }
    assert packed("modelopt", "nvfp4", FP4_CODES, **params) == {
        "weight": FP4_BYTES,
        "weight_scale": "38",
        "weight_scale_2": "0000803e",
    }


def test_mxfp4() -> None:
    exponent = np.array([[126]], np.uint8)
    found = packed("compressed-tensors", "mxfp4", np.tile(FP4_CODES, 2), exponent=exponent)
    assert found == {"weight_packed": FP4_BYTES * 2, "weight_scale": "7e"}
