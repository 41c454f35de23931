"""Tensors of a folder of safetensors, opened with Hugging Face's own library, and their floats."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

Floats = NDArray[np.float32]
Raw = NDArray[Any]

KINDS: Mapping[str, str] = {
    "F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "u1", "F8_E5M2": "u1", "U8": "u1",
    "I8": "i1", "I32": "<i4", "I64": "<i8",
}  # fmt: skip
"""Types of safetensors -> numpy's that hold the same bytes."""
FLOATS = frozenset({"F32", "F16", "BF16"})


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor, still in its file."""

    name: str
    dtype: str  # safetensors': "BF16"
    shape: tuple[int, ...]
    _file: Any = field(repr=False)  # opened

    def raw(self) -> Raw:
        """The bytes, as the numpy type of the same size."""
        import torch

        tensor = self._file.get_tensor(self.name).contiguous().reshape(-1)
        flat: Raw = tensor.view(torch.uint8).numpy()
        return flat.view(KINDS[self.dtype]).reshape(self.shape)

    def floats(self) -> Floats:
        """Values of F32, F16, BF16 and F8_E4M3, exactly."""
        raw = self.raw()
        if self.dtype == "BF16":
            return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
        if self.dtype == "F8_E4M3":
            return E4M3[raw]
        return raw.astype(np.float32)


Parts = Mapping[str, Stored]
"""What is stored of one module, by the last part of its name: "weight", "weight_scale"."""


def opened(folder: Path) -> dict[str, dict[str, Stored]]:
    """Module -> its parts, of the one file of a folder, or of all that its index names."""
    index = folder / "model.safetensors.index.json"
    whole = folder / "model.safetensors"
    paths = [whole]
    if not whole.is_file():
        shards = json.loads(index.read_text("utf-8"))["weight_map"].values()
        paths = [folder / name for name in sorted(set(shards))]
    found: dict[str, dict[str, Stored]] = {}
    for path in paths:
        file: Any = safe_open(path, framework="pt")
        for name in file.keys():
            one = file.get_slice(name)
            module, _, part = name.rpartition(".")
            shape = tuple(one.get_shape())
            found.setdefault(module, {})[part] = Stored(name, one.get_dtype(), shape, file)
    return found


def _e4m3() -> Floats:
    """By byte: a sign, four bits of exponent (bias 7), three of mantissa; no infinities, NaN where
    both are all ones. OCP 8-bit floating point specification 1.0, section 5."""
    byte = np.arange(256)
    exponent, mantissa = byte >> 3 & 15, byte & 7
    small = mantissa / 8 * 2.0**-6
    whole = np.where(exponent == 0, small, (1 + mantissa / 8) * 2.0 ** (exponent - 7))
    whole[(byte & 127) == 127] = np.nan
    return np.where(byte > 127, -whole, whole).astype(np.float32)


E4M3 = _e4m3()
_HALF = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
E2M1 = np.concatenate([_HALF, -_HALF])
"""By nibble. OCP microscaling specification 1.0, section 5.3.3."""


def pairs(low: Floats) -> Floats:
    """[256, 2] of [16]: the values of a byte's low nibble and of its high one."""
    byte = np.arange(256)
    return np.stack([low[byte & 15], low[byte >> 4]], axis=-1)


def spread(bytes_: Raw, bits: int) -> Floats:
    """[..., n] bytes -> [..., 8 n / bits] unsigned codes, low bits first, as float32."""
    byte, shifts = np.arange(256), np.arange(0, 8, bits)
    table = (byte[:, None] >> shifts & ((1 << bits) - 1)).astype(np.float32)
    return table[bytes_].reshape(*bytes_.shape[:-1], -1)


def of_words(words: Raw, bits: int, count: int) -> Floats:
    """[..., words] of 32 bits -> [..., count] unsigned codes, low bits first, as float32."""
    return spread(np.ascontiguousarray(words, "<u4").view(np.uint8), bits)[..., :count]


def scaled(values: Floats, scale: Floats) -> Floats:
    """`values` [rows, cols] times `scale` [rows, groups] of as many columns each, in place."""
    rows, groups = scale.shape
    grouped = values.reshape(rows, groups, -1)
    grouped *= scale[..., None]
    return grouped.reshape(rows, -1)
