"""compressed-tensors `pack-quantized`: integer codes in words along the inputs.

Source: vLLM 0.32, `compressed_tensors/schemes/compressed_tensors_wNa16.py`; compressed-tensors
0.17, `compressors/pack_quantized/helpers.py`.

| tensor | type | shape |
|---|---|---|
| weight_packed | int32 | [N, ceil(K*b/32)]; offset binary, which is our code |
| weight_scale | the model's | [N, groups] |
| weight_zero_point | int32, with zero points only | [ceil(N*b/32), groups]; packed along N |
| weight_shape | int64 | [2]: N, K |
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qconvert.formats.refusal import refuse
from qconvert.formats.serving.container import Array, Entry, Linear
from qconvert.formats.serving.layouts import words
from qconvert.formats.serving.layouts.layout import checked, groups_of, name, neutral
from qconvert.formats.serving.layouts.numbers import exact, floats
from qconvert.formats.serving.scheme import Scheme
from qconvert.formats.source import Dtype
from qconvert.formats.tensor import QuantizedTensor


class PackQuantized:
    marker = "weight_packed"

    def entries(self, linear: Linear, float_type: Dtype) -> tuple[Entry, ...]:
        (rows, cols), bits = linear.shape, linear.scheme.bits
        groups = groups_of(linear)
        zeros = Entry(
            name(linear, "weight_zero_point"), "I32", (words.words_of(rows, bits), groups)
        )
        return (
            Entry(name(linear, "weight_packed"), "I32", (rows, words.words_of(cols, bits))),
            Entry(name(linear, "weight_scale"), float_type, (rows, groups)),
            *(() if linear.scheme.symmetric else (zeros,)),
            Entry(name(linear, "weight_shape"), "I64", (2,)),
        )

    def pack(
        self, linear: Linear, tensor: QuantizedTensor, float_type: Dtype
    ) -> Mapping[str, Array]:
        bits, params = linear.scheme.bits, checked(linear, tensor).params
        scale = name(linear, "weight_scale")
        arrays: dict[str, Array] = {
            name(linear, "weight_packed"): words.pack(tensor.codes, bits),
            scale: exact(params["d"], float_type, scale),
            name(linear, "weight_shape"): np.array(linear.shape, "<i8"),
        }
        if not linear.scheme.symmetric:
            zero = params["zero"].astype(np.uint8)
            arrays[name(linear, "weight_zero_point")] = np.ascontiguousarray(
                words.pack(zero.T, bits).T
            )
        return arrays

    def unpack(self, linear: Linear, arrays: Mapping[str, Array]) -> QuantizedTensor:
        (rows, cols), bits = linear.shape, linear.scheme.bits
        told = tuple(int(size) for size in arrays[name(linear, "weight_shape")])
        if told != linear.shape:
            raise refuse(f"{linear.module}: weight_shape is {told}, the tensors are {linear.shape}")
        params = {"d": floats(arrays[name(linear, "weight_scale")])}
        codes = words.unpack(arrays[name(linear, "weight_packed")], bits, cols)
        if linear.scheme.symmetric:
            return neutral(linear, codes, params)
        zeros = words.unpack(arrays[name(linear, "weight_zero_point")].T, bits, rows).T
        return neutral(linear, codes, {**params, "zero": zeros})

    def shape(self, stored: Mapping[str, Entry], scheme: Scheme) -> tuple[int, int]:
        rows, count = stored["weight_packed"].shape
        if scheme.group:
            return rows, stored["weight_scale"].shape[1] * scheme.group
        return rows, count * words.per_word(scheme.bits)
