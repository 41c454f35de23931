"""compressed-tensors `int-quantized`: INT8 weights that are multiplied as integers.

Source: vLLM 0.32, `compressed_tensors/schemes/compressed_tensors_w8a8_int8.py`: `weight` int8
[N, K], `weight_scale` float32 [N, 1].
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qconvert.formats.serving.container import Array, Entry, Linear
from qconvert.formats.serving.layouts.layout import checked, groups_of, name, neutral
from qconvert.formats.serving.layouts.numbers import exact, floats
from qconvert.formats.serving.scheme import Scheme
from qconvert.formats.source import Dtype
from qconvert.formats.tensor import QuantizedTensor

MIDDLE = np.uint8(128)  # the code of zero


class IntQuantized:
    marker = "weight"

    def entries(self, linear: Linear, float_type: Dtype) -> tuple[Entry, ...]:
        return (
            Entry(name(linear, "weight"), "I8", linear.shape),
            Entry(name(linear, "weight_scale"), "F32", (linear.shape[0], groups_of(linear))),
        )

    def pack(
        self, linear: Linear, tensor: QuantizedTensor, float_type: Dtype
    ) -> Mapping[str, Array]:
        scale = name(linear, "weight_scale")
        return {
            name(linear, "weight"): (checked(linear, tensor).codes ^ MIDDLE).view(np.int8),
            scale: exact(tensor.params["d"], "F32", scale),
        }

    def unpack(self, linear: Linear, arrays: Mapping[str, Array]) -> QuantizedTensor:
        codes = arrays[name(linear, "weight")].view(np.uint8) ^ MIDDLE
        return neutral(linear, codes, {"d": floats(arrays[name(linear, "weight_scale")])})

    def shape(self, stored: Mapping[str, Entry], scheme: Scheme) -> tuple[int, int]:
        rows, cols = stored["weight"].shape
        return rows, cols
