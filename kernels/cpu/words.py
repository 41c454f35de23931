"""Words on a processor, compiled by numba: a field of all the words of a row at a time."""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit

from qconvert.kernels.plain.words import on_scales
from qconvert.kernels.word_layouts import Scales, WordLayout

Shape = tuple[int, int]


def pack(codes: torch.Tensor, layout: WordLayout) -> torch.Tensor:
    rows, cols = codes.shape
    first, second = layout.natural((rows, cols))
    kind, loop = (np.uint8 if layout.word == 8 else np.uint32), _pack_cols
    if layout.along == "rows":
        loop = _pack_rows
    out = np.zeros((first, second), kind)
    loop(codes.numpy(), layout.tables()[0], _shifts(layout), out)
    found = torch.from_numpy(out.view(np.uint8 if layout.word == 8 else np.int32))
    return found.T.contiguous() if layout.transposed else found


def unpack(words: torch.Tensor, layout: WordLayout, shape: Shape) -> torch.Tensor:
    return torch.from_numpy(_spread(words, layout, layout.tables()[1], shape))


def dequantize(
    words: torch.Tensor, scales: Scales, layout: WordLayout, shape: Shape, dtype: torch.dtype
) -> torch.Tensor:
    fields = _spread(words, layout, np.arange(1 << layout.bits, dtype=np.uint8), shape)
    values = np.empty(shape, np.float32)
    _look_up(fields.reshape(-1), layout.tables()[2], values.reshape(-1))
    return on_scales(torch.from_numpy(values), scales, layout.coding.negated).to(dtype)


def _spread(words: torch.Tensor, layout: WordLayout, table: Any, shape: Shape) -> Any:
    """uint8 of `shape`: what `table` has for each field."""
    out = np.empty(shape, np.uint8)
    if layout.transposed:
        words = words.T.contiguous()
    plain = words.numpy().view(np.uint8 if layout.word == 8 else np.uint32)
    loop = _spread_rows if layout.along == "rows" else _spread_cols
    loop(plain, table, _shifts(layout), out)
    return out


def _shifts(layout: WordLayout) -> Any:
    return np.array(layout.places, np.uint32) * np.uint32(layout.bits)


@njit(nogil=True, cache=True)
def _pack_cols(codes, table, shifts, out):
    rows, cols = codes.shape
    per = len(shifts)
    for r in range(rows):
        for i in range(per):
            shift = shifts[i]
            for j in range((cols - i + per - 1) // per):
                out[r, j] |= np.uint32(table[codes[r, j * per + i]]) << shift


@njit(nogil=True, cache=True)
def _pack_rows(codes, table, shifts, out):
    rows, cols = codes.shape
    per = len(shifts)
    for r in range(rows):
        shift = shifts[r % per]
        for c in range(cols):
            out[r // per, c] |= np.uint32(table[codes[r, c]]) << shift


@njit(nogil=True, cache=True)
def _spread_cols(words, table, shifts, out):
    rows, cols = out.shape
    per, mask = len(shifts), np.uint32(len(table) - 1)
    for r in range(rows):
        for i in range(per):
            shift = shifts[i]
            for j in range((cols - i + per - 1) // per):
                out[r, j * per + i] = table[(np.uint32(words[r, j]) >> shift) & mask]


@njit(nogil=True, cache=True)
def _spread_rows(words, table, shifts, out):
    rows, cols = out.shape
    per, mask = len(shifts), np.uint32(len(table) - 1)
    for r in range(rows):
        shift = shifts[r % per]
        for c in range(cols):
            out[r, c] = table[(np.uint32(words[r // per, c]) >> shift) & mask]


@njit(nogil=True, cache=True)
def _look_up(fields, table, out):
    for i in range(len(fields)):
        out[i] = table[fields[i]]
