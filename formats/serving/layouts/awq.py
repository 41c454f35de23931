"""AWQ, "gemm": words along the outputs, in an order of its own; always with zero points.

Source: vLLM 0.32, `auto_awq.py`; LightLLM 87881ae, `lightllm/common/quantization/awq.py`. Weights
without zero points have 8 everywhere.

| tensor | type | shape |
|---|---|---|
| qweight | int32 | [K, N/8]; bits 4*i of word j hold output 8*j + (0, 2, 4, 6, 1, 3, 5, 7)[i] |
| qzeros | int32 | [groups, N/8], in the same order: the zero point itself |
| scales | float16 | [groups, N] |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.refusal import refuse
from qconvert.formats.serving.container import Array, Entry, Linear
from qconvert.formats.serving.layouts.layout import checked, groups_of, name, neutral
from qconvert.formats.serving.layouts.numbers import exact, floats
from qconvert.formats.serving.scheme import Scheme
from qconvert.formats.source import Dtype
from qconvert.formats.tensor import QuantizedTensor
from qconvert.kernels.word_layouts import AWQ_ORDER as ORDER

MIDDLE = 8
PER_WORD = len(ORDER)
LOW = np.uint8(15)


class Awq:
    marker = "qweight"

    def entries(self, linear: Linear, float_type: Dtype) -> tuple[Entry, ...]:
        rows, cols = linear.shape
        if rows % PER_WORD:
            raise refuse(
                f"{linear.module}: {rows} outputs do not fill AWQ's words of {PER_WORD} codes",
                "leave it in float, or take --container compressed-tensors",
            )
        groups = groups_of(linear)
        return (
            Entry(name(linear, "qweight"), "I32", (cols, rows // PER_WORD)),
            Entry(name(linear, "qzeros"), "I32", (groups, rows // PER_WORD)),
            Entry(name(linear, "scales"), "F16", (groups, rows)),
        )

    def pack(
        self, linear: Linear, tensor: QuantizedTensor, float_type: Dtype
    ) -> Mapping[str, Array]:
        scales, params = name(linear, "scales"), checked(linear, tensor).params
        zeros = np.full(params["d"].shape, MIDDLE, np.uint8)
        if not linear.scheme.symmetric:
            zeros = params["zero"].astype(np.uint8)
        return {
            name(linear, "qweight"): _pack(tensor.codes),
            name(linear, "qzeros"): _pack(zeros),
            scales: np.ascontiguousarray(exact(params["d"].T, "F16", scales)),
        }

    def unpack(self, linear: Linear, arrays: Mapping[str, Array]) -> QuantizedTensor:
        codes = _unpack(arrays[name(linear, "qweight")])
        zeros = _unpack(arrays[name(linear, "qzeros")])
        params: dict[str, NDArray[Any]] = {"d": floats(arrays[name(linear, "scales")]).T}
        if not linear.scheme.symmetric:
            return neutral(linear, codes, {**params, "zero": zeros})
        if (zeros != MIDDLE).any():
            raise refuse(f"{linear.module}: qzeros are not {MIDDLE}, though it has no zero points")
        return neutral(linear, codes, params)

    def shape(self, stored: Mapping[str, Entry], scheme: Scheme) -> tuple[int, int]:
        cols, count = stored["qweight"].shape
        return count * PER_WORD, cols


def _pack(codes: NDArray[np.uint8]) -> NDArray[np.int32]:
    """[N, K] -> [K, N/8]: bytes of two outputs first, then one transposition of half the size."""
    eights = codes.reshape(-1, PER_WORD, codes.shape[1])
    parts = [
        eights[:, low] | eights[:, high] << np.uint8(4)
        for low, high in zip(ORDER[::2], ORDER[1::2], strict=True)
    ]
    words: NDArray[np.int32] = np.stack(parts, axis=-1).view("<i4")[..., 0]  # [N/8, K]
    return np.ascontiguousarray(words.T)


def _unpack(words: NDArray[Any]) -> NDArray[np.uint8]:
    """The inverse of `_pack`."""
    parts = np.ascontiguousarray(words.T, dtype="<i4").view(np.uint8)
    parts = parts.reshape(words.shape[1], words.shape[0], 4)
    eights = np.empty((words.shape[1], PER_WORD, words.shape[0]), np.uint8)
    for place, (low, high) in enumerate(zip(ORDER[::2], ORDER[1::2], strict=True)):
        eights[:, low] = parts[..., place] & LOW
        eights[:, high] = parts[..., place] >> np.uint8(4)
    return eights.reshape(-1, words.shape[0])
