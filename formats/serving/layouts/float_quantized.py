"""FP8 weights as they are multiplied: e4m3fn bytes [N, K], and float32 multipliers.

The scale's name and shape are a container's own: one for each row, for the tensor, or for each
block of 128 x 128. Source: vLLM 0.32, `compressed_tensors/schemes/compressed_tensors_w8a8_fp8.py`,
`fp8.py`, `modelopt.py`.
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
    element,
    groups_of,
    name,
    neutral,
    repeated,
    rows_alike,
)
from qconvert.formats.serving.layouts.numbers import exact, floats
from qconvert.formats.serving.scheme import Scheme
from qconvert.formats.source import Dtype
from qconvert.formats.tensor import QuantizedTensor


def sharing(scheme: Scheme) -> int:
    """Rows that have one scale: 1, those of a block, 0 for all."""
    return 0 if scheme.shared else scheme.grid.together


@dataclass(frozen=True, slots=True)
class FloatQuantized:
    scale: str  # last part of its name
    scale_shape: Shape  # of [rows of scales, scales in a row]
    marker: str = "weight"

    def entries(self, linear: Linear, float_type: Dtype) -> tuple[Entry, ...]:
        return (
            Entry(name(linear, "weight"), "F8_E4M3", linear.shape),
            Entry(name(linear, self.scale), "F32", self._shape(linear)),
        )

    def pack(
        self, linear: Linear, tensor: QuantizedTensor, float_type: Dtype
    ) -> Mapping[str, Array]:
        scale = name(linear, self.scale)
        values = rows_alike(checked(linear, tensor).params["d"], sharing(linear.scheme), scale)
        return {
            name(linear, "weight"): element(linear).bits(tensor.codes),
            scale: exact(values, "F32", scale).reshape(self._shape(linear)),
        }

    def unpack(self, linear: Linear, arrays: Mapping[str, Array]) -> QuantizedTensor:
        bits = arrays[name(linear, "weight")].astype(np.uint8, copy=False)
        try:
            codes = element(linear).codes(bits)
        except ValueError as fault:
            raise refuse(f"{name(linear, 'weight')}: {fault}") from None
        values = floats(arrays[name(linear, self.scale)]).reshape(-1, groups_of(linear))
        rows = linear.shape[0]
        return neutral(linear, codes, {"d": repeated(values, sharing(linear.scheme), rows)})

    def shape(self, stored: Mapping[str, Entry], scheme: Scheme) -> tuple[int, int]:
        rows, cols = stored["weight"].shape
        return rows, cols

    def _shape(self, linear: Linear) -> tuple[int, ...]:
        rows = linear.shape[0]
        return self.scale_shape(-(-rows // (sharing(linear.scheme) or rows)), groups_of(linear))
