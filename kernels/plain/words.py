"""Words in plain torch, by tables of what every code and every field is: the truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qconvert.kernels.minifloat import powers
from qconvert.kernels.word_layouts import Scales, WordLayout, fp8

Shape = tuple[int, int]

E8M0_VALUES = np.append(powers(np.arange(255, dtype=np.uint8)), np.float32(np.inf))


def pack(codes: torch.Tensor, layout: WordLayout) -> torch.Tensor:
    fields = looked_up(layout.tables()[0], codes).long()
    shape = (codes.shape[0], codes.shape[1])
    if layout.along == "rows":
        fields = fields.T
    words = layout.natural(shape)[0 if layout.along == "rows" else 1]
    missing = words * layout.per - fields.shape[1]
    parts = torch.nn.functional.pad(fields, (0, missing)).reshape(-1, words, layout.per)
    found = torch.zeros(parts.shape[:2], dtype=torch.int64, device=codes.device)
    for code, place in enumerate(layout.places):
        found |= parts[..., code] << place * layout.bits
    if (layout.along == "rows") != layout.transposed:
        found = found.T
    found = found.contiguous()
    if layout.word == 8:
        return found.to(torch.uint8)
    return (found - (found >> 31 << 32)).to(torch.int32)  # the same 32 bits, with a sign


def unpack(words: torch.Tensor, layout: WordLayout, shape: Shape) -> torch.Tensor:
    return looked_up(layout.tables()[1], fields(words, layout, shape))


def dequantize(
    words: torch.Tensor, scales: Scales, layout: WordLayout, shape: Shape, dtype: torch.dtype
) -> torch.Tensor:
    values = looked_up(layout.tables()[2], fields(words, layout, shape))
    return on_scales(values, scales, layout.coding.negated).to(dtype)


def fields(words: torch.Tensor, layout: WordLayout, shape: Shape) -> torch.Tensor:
    """[rows, cols]: the bits of each code as they are stored."""
    if layout.transposed:
        words = words.T
    if layout.along == "rows":
        words = words.T
    shifts = torch.tensor(layout.places, device=words.device) * layout.bits
    parts = (words[..., None].int() >> shifts.int()) & (1 << layout.bits) - 1
    flat = parts.reshape(words.shape[0], -1)
    if layout.along == "rows":
        flat = flat.T
    return flat[: shape[0], : shape[1]].contiguous()


def on_scales(values: torch.Tensor, scales: Scales, negated: bool) -> torch.Tensor:
    """levels [rows, cols] float32, changed in place: times scales, less scale * zero."""
    rows, cols = values.shape
    scale = lines_of(scales, negated, rows)
    groups = scale.shape[1]
    size = scales.group or cols
    offset = None if scales.zero is None else scale * scales.zero
    for group in range(groups) if cols % size else ():
        part = values[:, group * size : (group + 1) * size]
        part *= scale[:, group, None]
        if offset is not None:
            part -= offset[:, group, None]
    if cols % size == 0:
        whole = values.view(rows, groups, size)
        whole *= scale[..., None]
        if offset is not None:
            whole -= offset[..., None]
    return values


def lines_of(scales: Scales, negated: bool, rows: int) -> torch.Tensor:
    """The scale of each group of each row, [rows, groups] float32."""
    found = scales.values
    if scales.kind == "e4m3":
        found = looked_up(fp8().tables()[2], found)
    elif scales.kind == "e8m0":
        found = looked_up(E8M0_VALUES, found)
    found = found.float()
    if scales.whole is not None:
        found = found * scales.whole.reshape(1, 1)
    if negated:
        found = 0 - found
    if scales.together != 1:
        found = found.repeat_interleave(scales.together or rows, 0)[:rows]
    return found


def looked_up(table: NDArray[Any], at: torch.Tensor) -> torch.Tensor:
    values = torch.from_numpy(table).to(at.device)
    return values[at.int()] if at.dtype != torch.int32 else values[at]
