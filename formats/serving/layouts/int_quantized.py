"""INT8 weights, a byte each, two's complement, with a scale for each row; symmetric.

Source: vLLM 0.32, `compressed_tensors/schemes/compressed_tensors_w8a8_int8.py`: `weight` int8
[N, K], `weight_scale` float32 [N, 1]. ModelOpt 0.47 has the scales as [N].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

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


def in_columns(rows: int, groups: int) -> tuple[int, ...]:
    return rows, groups


@dataclass(frozen=True, slots=True)
class IntQuantized:
    scale_shape: Shape = in_columns  # of [N, 1]
    marker: str = "weight"

    def entries(self, linear: Linear, float_type: Dtype) -> tuple[Entry, ...]:
        return (
            Entry(name(linear, "weight"), "I8", linear.shape),
            Entry(name(linear, "weight_scale"), "F32", self._shape(linear)),
        )

    def pack(
        self, linear: Linear, tensor: QuantizedTensor, float_type: Dtype
    ) -> Mapping[str, Array]:
        scale = name(linear, "weight_scale")
        return {
            name(linear, "weight"): signed(linear, checked(linear, tensor).codes),
            scale: exact(tensor.params["d"], "F32", scale).reshape(self._shape(linear)),
        }

    def unpack(self, linear: Linear, arrays: Mapping[str, Array]) -> QuantizedTensor:
        codes = of_signed(linear, arrays[name(linear, "weight")].view(np.int8))
        scale = floats(arrays[name(linear, "weight_scale")]).reshape(-1, groups_of(linear))
        return neutral(linear, codes, {"d": scale})

    def shape(self, stored: Mapping[str, Entry], scheme: Scheme) -> tuple[int, int]:
        rows, cols = stored["weight"].shape
        return rows, cols

    def _shape(self, linear: Linear) -> tuple[int, ...]:
        return self.scale_shape(linear.shape[0], groups_of(linear))
