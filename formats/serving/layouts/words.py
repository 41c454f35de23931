"""Codes side by side in 32-bit words, low bits first."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint8]
Words = NDArray[np.int32]

WORD = 32


def per_word(bits: int) -> int:
    """Codes that share a word; `ValueError` for sizes that leave bits over: readers differ on
    them."""
    if bits not in (1, 2, 4, 8):
        raise ValueError(f"codes of {bits} bits are packed in two ways: take 2, 4 or 8")
    return WORD // bits


def words_of(count: int, bits: int) -> int:
    """Words that `count` codes fill, the last one perhaps in part."""
    return -(-count // per_word(bits))


def pack(codes: Codes, bits: int) -> Words:
    """[..., count] -> [..., words]: bits b*i of word j hold code j*(32/b) + i; zeros at the end."""
    count = codes.shape[-1]
    missing = words_of(count, bits) * per_word(bits) - count
    if missing:
        codes = np.concatenate([codes, np.zeros((*codes.shape[:-1], missing), np.uint8)], axis=-1)
    return _as_words(pack_bytes(codes, bits))


def unpack(words: NDArray[Any], bits: int, count: int) -> Codes:
    """The inverse of `pack`."""
    return unpack_bytes(_as_bytes(words), bits)[..., :count]


def pack_bytes(codes: Codes, bits: int) -> Codes:
    """[..., count] -> [..., count * bits / 8], low bits first; the count fills whole bytes."""
    step = 8 // bits
    packed = codes[..., ::step].copy()
    for place in range(1, step):
        packed |= codes[..., place::step] << np.uint8(bits * place)
    return packed


def unpack_bytes(packed: Codes, bits: int) -> Codes:
    """The inverse of `pack_bytes`."""
    step = 8 // bits
    codes = np.empty((*packed.shape[:-1], packed.shape[-1] * step), np.uint8)
    for place in range(step):
        codes[..., place::step] = (packed >> np.uint8(bits * place)) & np.uint8((1 << bits) - 1)
    return codes


def _as_words(packed: Codes) -> Words:
    words: Words = np.ascontiguousarray(packed).view("<i4")
    return words


def _as_bytes(words: NDArray[Any]) -> Codes:
    return np.ascontiguousarray(words, dtype="<i4").view(np.uint8)
