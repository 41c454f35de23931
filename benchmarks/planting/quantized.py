"""Rounding to nearest in its plainest form: what a planter needs to store other values."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from planting.files import Inapplicable
from planting.output import Fields


def symmetric(
    values: NDArray[np.float32], group: int, largest: int
) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """Codes [out, in] in -largest..largest, and scales [out, groups]."""
    rows, cols = values.shape
    grouped = values.reshape(rows, cols // group, group)
    scale = np.abs(grouped).max(-1) / largest
    safe = np.where(scale == 0, 1, scale)
    code = np.clip(np.rint(grouped / safe[..., None]), -largest, largest)
    return code.reshape(rows, cols).astype(np.int16), scale.astype(np.float32)


def plain(fields: Fields, zero: int) -> NDArray[np.float32]:
    """What a quantized weight stands for, where a block holds codes, scales and zero points alone;
    `zero`: the code of 0 where none are stored."""
    if "sub" in fields or "min" in fields or "code" not in fields:
        raise Inapplicable("its blocks hold more than codes and scales")
    code, scale = fields["code"], fields["scale"].astype(np.float32)
    each = code.shape[1] // scale.shape[1] if scale.ndim > 1 else code.shape[1]
    offset: Any = fields.get("zero", np.full(scale.shape, zero)).astype(np.float32)
    spread = np.repeat(scale.reshape(len(scale), -1), each, 1)
    offset = np.repeat(offset.reshape(len(offset), -1), each, 1)
    values: NDArray[np.float32] = (code.astype(np.float32) - offset) * spread
    return values


def again(fields: Fields, values: NDArray[np.float32], zero: int, largest: int) -> Fields:
    """`values` in the fields of such a weight."""
    groups = fields["scale"].shape[1]
    code, scale = symmetric(values, values.shape[1] // groups, largest)
    offset = np.repeat(fields["zero"], values.shape[1] // groups, 1) if "zero" in fields else zero
    return {**fields, "code": (code + offset).astype(np.int16),
            "scale": scale.astype(fields["scale"].dtype)}  # fmt: skip
