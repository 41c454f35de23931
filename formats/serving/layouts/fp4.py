"""FP4: two e2m1 codes in a byte along the inputs, scales of groups, one of the tensor for NVFP4.

Source: vLLM 0.32, `compressed_tensors/schemes/compressed_tensors_w4a4_{nvfp4,mxfp4}.py` and
`modelopt.py`; compressed-tensors 0.17, `compressors/nvfp4/helpers.py`. The even input is the low
nibble. The scale of the tensor is a divisor in compressed-tensors (2688 / largest magnitude) and
its reciprocal, a multiplier, in ModelOpt's form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.refusal import refuse
from qconvert.formats.serving.container import Array, Entry, Linear
from qconvert.formats.serving.layouts import words
from qconvert.formats.serving.layouts.layout import (
    checked,
    element,
    groups_of,
    name,
    neutral,
    repeated,
    rows_alike,
)
from qconvert.formats.serving.layouts.numbers import FP4_RANGE
from qconvert.formats.serving.scheme import Scheme
from qconvert.formats.source import Dtype
from qconvert.formats.tensor import QuantizedTensor

BITS = 4


@dataclass(frozen=True, slots=True)
class NvFp4:
    """Parameters of the grid: "scale", bytes of e4m3fn, and "amax", equal in all rows."""

    marker: str  # "weight_packed"
    whole: str  # last part of the name of the tensor's scale
    whole_shape: tuple[int, ...]  # of one element
    divisor: bool

    def entries(self, linear: Linear, float_type: Dtype) -> tuple[Entry, ...]:
        rows, cols = linear.shape
        return (
            Entry(name(linear, self.marker), "U8", (rows, cols // 2)),
            Entry(name(linear, "weight_scale"), "F8_E4M3", (rows, groups_of(linear))),
            Entry(name(linear, self.whole), "F32", self.whole_shape),
        )

    def pack(
        self, linear: Linear, tensor: QuantizedTensor, float_type: Dtype
    ) -> Mapping[str, Array]:
        params = checked(linear, tensor).params
        largest = rows_alike(params["amax"], 0, f"{linear.module}: amax").astype(np.float32)
        if not (np.isfinite(largest).all() and (largest > 0).all()):
            raise ValueError(f"{linear.module}: amax is {largest.item()}")
        return {
            name(linear, self.marker): _pack(linear, tensor.codes),
            name(linear, "weight_scale"): params["scale"].astype(np.uint8),
            name(linear, self.whole): self._stored(largest).reshape(self.whole_shape),
        }

    def unpack(self, linear: Linear, arrays: Mapping[str, Array]) -> QuantizedTensor:
        """ "amax" is one that is stored as what is found: the last bit of it is not in the file."""
        stored = np.asarray(arrays[name(linear, self.whole)], np.float32).reshape(1, 1)
        if not (np.isfinite(stored).all() and (stored > 0).all()):
            raise refuse(f"{name(linear, self.whole)} is {stored.item()}")
        scale = np.ascontiguousarray(arrays[name(linear, "weight_scale")]).view(np.uint8)
        largest = repeated(self._largest(stored), 0, linear.shape[0])
        codes = _unpack(linear, arrays[name(linear, self.marker)])
        return neutral(linear, codes, {"scale": scale, "amax": largest})

    def shape(self, stored: Mapping[str, Entry], scheme: Scheme) -> tuple[int, int]:
        rows, count = stored[self.marker].shape
        return rows, 2 * count

    def _stored(self, largest: NDArray[np.float32]) -> NDArray[np.float32]:
        span = np.float32(FP4_RANGE)
        return span / largest if self.divisor else largest / span

    def _largest(self, stored: NDArray[np.float32]) -> NDArray[np.float32]:
        span = np.float32(FP4_RANGE)
        near = span / stored if self.divisor else stored * span
        up, down = (np.nextafter(near, np.float32(to)) for to in (np.inf, 0))
        tried = (near, up, down)
        return next((one for one in tried if np.array_equal(self._stored(one), stored)), near)


class MxFp4:
    """Parameters of the grid: "exponent", E8M0 bytes."""

    marker = "weight_packed"

    def entries(self, linear: Linear, float_type: Dtype) -> tuple[Entry, ...]:
        rows, cols = linear.shape
        return (
            Entry(name(linear, "weight_packed"), "U8", (rows, cols // 2)),
            Entry(name(linear, "weight_scale"), "U8", (rows, groups_of(linear))),
        )

    def pack(
        self, linear: Linear, tensor: QuantizedTensor, float_type: Dtype
    ) -> Mapping[str, Array]:
        return {
            name(linear, "weight_packed"): _pack(linear, checked(linear, tensor).codes),
            name(linear, "weight_scale"): tensor.params["exponent"].astype(np.uint8),
        }

    def unpack(self, linear: Linear, arrays: Mapping[str, Array]) -> QuantizedTensor:
        exponent = np.array(arrays[name(linear, "weight_scale")], np.uint8)
        codes = _unpack(linear, arrays[name(linear, "weight_packed")])
        return neutral(linear, codes, {"exponent": exponent})

    def shape(self, stored: Mapping[str, Entry], scheme: Scheme) -> tuple[int, int]:
        rows, count = stored["weight_packed"].shape
        return rows, 2 * count


def _pack(linear: Linear, codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return words.pack_bytes(element(linear).bits(codes), BITS)


def _unpack(linear: Linear, packed: Array) -> NDArray[np.uint8]:
    return element(linear).codes(words.unpack_bytes(np.asarray(packed, np.uint8), BITS))
