"""GPTQ: words along the inputs, transposed; symmetric.

Source: vLLM 0.32, `auto_gptq.py`; the zero point is stored minus one (`checkpoint_format` "gptq"),
which vLLM never reads and other readers do. `g_idx` says that columns are in their natural order:
a permuted one is dropped by vLLM without a word, so none is ever written, nor taken.

| tensor | type | shape |
|---|---|---|
| qweight | int32 | [K*b/32, N] |
| qzeros | int32 | [groups, N*b/32] |
| scales | float16 | [groups, N] |
| g_idx | int32 | [K]: k // group |
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.refusal import Reason, raise_if_any, refuse
from qconvert.formats.serving.container import Array, Entry, Linear
from qconvert.formats.serving.layouts import words
from qconvert.formats.serving.layouts.layout import checked, groups_of, name, neutral
from qconvert.formats.serving.layouts.numbers import exact, floats
from qconvert.formats.serving.scheme import Scheme
from qconvert.formats.source import Dtype
from qconvert.formats.tensor import QuantizedTensor


class Gptq:
    marker = "qweight"

    def entries(self, linear: Linear, float_type: Dtype) -> tuple[Entry, ...]:
        (rows, cols), bits = linear.shape, linear.scheme.bits
        step = words.per_word(bits)
        raise_if_any(
            [
                Reason(
                    f"{linear.module}: {count} {what} do not fill GPTQ's words of {step} codes",
                    "leave it in float, or take --container compressed-tensors",
                )
                for count, what in ((cols, "inputs"), (rows, "outputs"))
                if count % step
            ]
        )
        groups = groups_of(linear)
        return (
            Entry(name(linear, "qweight"), "I32", (cols // step, rows)),
            Entry(name(linear, "qzeros"), "I32", (groups, rows // step)),
            Entry(name(linear, "scales"), "F16", (groups, rows)),
            Entry(name(linear, "g_idx"), "I32", (cols,)),
        )

    def pack(
        self, linear: Linear, tensor: QuantizedTensor, float_type: Dtype
    ) -> Mapping[str, Array]:
        bits, scales = linear.scheme.bits, name(linear, "scales")
        packed = words.pack(checked(linear, tensor).codes, bits)
        return {
            name(linear, "qweight"): np.ascontiguousarray(packed.T),
            name(linear, "qzeros"): words.pack(_zeros(linear), bits),
            scales: np.ascontiguousarray(exact(tensor.params["d"].T, "F16", scales)),
            name(linear, "g_idx"): _natural(linear),
        }

    def unpack(self, linear: Linear, arrays: Mapping[str, Array]) -> QuantizedTensor:
        (rows, cols), bits = linear.shape, linear.scheme.bits
        if not np.array_equal(arrays[name(linear, "g_idx")], _natural(linear)):
            raise refuse(
                f"{linear.module}: g_idx is not column // group: vLLM drops the order and computes "
                "with other weights",
                "quantize with static groups, or write the folder again with qconvert",
            )
        zeros = words.unpack(arrays[name(linear, "qzeros")], bits, rows)
        if not np.array_equal(zeros, _zeros(linear)):
            raise refuse(
                f"{linear.module}: qzeros are not those of symmetric weights: vLLM never reads "
                "them and computes with other weights",
                "take --container compressed-tensors or awq for zero points",
            )
        codes = words.unpack(arrays[name(linear, "qweight")].T, bits, cols)
        return neutral(linear, codes, {"d": floats(arrays[name(linear, "scales")]).T})

    def shape(self, stored: Mapping[str, Entry], scheme: Scheme) -> tuple[int, int]:
        count, rows = stored["qweight"].shape
        return rows, count * words.per_word(scheme.bits)


def _zeros(linear: Linear) -> NDArray[np.uint8]:
    """The zero point minus one, [groups, N]."""
    middle = 1 << (linear.scheme.bits - 1)
    return np.full((groups_of(linear), linear.shape[0]), middle - 1, np.uint8)


def _natural(linear: Linear) -> NDArray[np.int32]:
    cols = linear.shape[1]
    return (np.arange(cols) // (linear.scheme.group or cols)).astype("<i4")
