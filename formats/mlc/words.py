"""Codes and scales as MLC stores them.

MLC decodes (code - M) * scale, M = 2^(bits-1) - 1. On an integer grid a weight is
(q - 2^(bits-1)) * s: the same value is stored as code 2^bits - 1 - q with the scale -s, so that all
codes are in use. Scales that MLC's own rule has found are stored as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.floats import encode_floats
from qconvert.formats.mlc.schemes import Scheme
from qconvert.formats.refusal import refuse
from qconvert.formats.tensor import QuantizedTensor

LARGEST_F16 = 65520.0  # from here on float16 is infinite


def encode(
    tensor: QuantizedTensor, scheme: Scheme, kind: str, *, compatible: bool
) -> tuple[NDArray[np.uint32], NDArray[Any]]:
    """Words [rows, words] and scales [rows, groups], these stored as `kind`: "F16", "BF16", "F32".

    Code j of a word lies at bit j * bits; the codes that fill up the last group are 0.
    """
    scale = tensor.params["d"].astype(np.float32)
    codes = tensor.codes
    if not compatible:
        codes = np.uint8(scheme.top) - codes
        scale = np.float32(0) - scale  # +0.0 where it is zero
    return packed(codes, scheme), encode_floats(scale, kind, "of scales")


def packed(codes: NDArray[np.uint8], scheme: Scheme) -> NDArray[np.uint32]:
    """[rows, cols] -> [rows, words]"""
    rows, cols = codes.shape
    words = scheme.words(cols)
    whole = np.zeros((rows, words * scheme.per_word), np.uint8)
    whole[:, :cols] = codes
    found = np.zeros((rows, words), np.dtype("<u4"))
    for place in range(scheme.per_word):
        found |= whole[:, place :: scheme.per_word].astype("<u4") << np.uint32(place * scheme.bits)
    return found


def encode_kept(values: NDArray[np.float32], kind: str, name: str) -> NDArray[Any]:
    """What stays float, as stored; `Refused`, naming the tensor, where a value does not fit."""
    if kind == "F16" and np.isfinite(values).all():
        largest = float(np.abs(values).max(initial=0.0))
        if largest >= LARGEST_F16:
            raise refuse(
                f"tensor {name}: {largest:.6g} is too large for float16, in which MLC keeps it",
                "take --type q4bf16_1 or q4f32_1",
            )
    return encode_floats(values, kind, name)
