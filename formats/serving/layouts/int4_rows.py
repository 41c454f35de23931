"""ModelOpt's 4-bit integers: two rows in a byte, two's complement; symmetric.

Source: nvidia-modelopt 0.47, `torch/export/quant_utils.py`, `pack_int4_in_uint8`; TensorRT-LLM,
`tensorrt_llm/_torch/modules/linear.py` @ 00bbf71. The even row is the low nibble.

| tensor | type | shape |
|---|---|---|
| weight | uint8 | [N/2, K] |
| weight_scale | float32 | [N, groups], or [N] where a row is one group |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from qconvert.formats.refusal import refuse
from qconvert.formats.serving.container import Array, Entry, Linear
from qconvert.formats.serving.layouts.layout import (
    Shape,
    checked,
    groups_of,
    name,
    neutral,
    of_signed,
    signed,
)
from qconvert.formats.serving.layouts.numbers import exact, floats
from qconvert.formats.serving.scheme import Scheme
from qconvert.formats.source import Dtype
from qconvert.formats.tensor import QuantizedTensor

BITS = np.uint8(4)
LOW = np.uint8(15)
SIGN = np.uint8(8)  # of a nibble


@dataclass(frozen=True, slots=True)
class Int4Rows:
    scale_shape: Shape  # of [N, groups]
    marker: str = "weight"

    def entries(self, linear: Linear, float_type: Dtype) -> tuple[Entry, ...]:
        rows, cols = linear.shape
        if rows % 2:
            raise refuse(
                f"{linear.module}: {rows} outputs are not pairs, and two rows share a byte",
                "leave it in float",
            )
        return (
            Entry(name(linear, "weight"), "U8", (rows // 2, cols)),
            Entry(name(linear, "weight_scale"), "F32", self._shape(linear)),
        )

    def pack(
        self, linear: Linear, tensor: QuantizedTensor, float_type: Dtype
    ) -> Mapping[str, Array]:
        scale = name(linear, "weight_scale")
        nibbles = signed(linear, checked(linear, tensor).codes).view(np.uint8) & LOW
        return {
            name(linear, "weight"): nibbles[::2] | nibbles[1::2] << BITS,
            scale: exact(tensor.params["d"], "F32", scale).reshape(self._shape(linear)),
        }

    def unpack(self, linear: Linear, arrays: Mapping[str, Array]) -> QuantizedTensor:
        packed = np.asarray(arrays[name(linear, "weight")], np.uint8)
        nibbles = np.stack([packed & LOW, packed >> BITS], axis=1).reshape(linear.shape)
        values = (nibbles ^ SIGN).view(np.int8) - np.int8(SIGN)
        scale = floats(arrays[name(linear, "weight_scale")]).reshape(-1, groups_of(linear))
        return neutral(linear, of_signed(linear, values), {"d": scale})

    def shape(self, stored: Mapping[str, Entry], scheme: Scheme) -> tuple[int, int]:
        pairs, cols = stored["weight"].shape
        return 2 * pairs, cols

    def _shape(self, linear: Linear) -> tuple[int, ...]:
        return self.scale_shape(linear.shape[0], groups_of(linear))
