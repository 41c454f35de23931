"""Decodes what peers write: 4-bit symmetric groups, as compressed-tensors and as GPTQ pack them.

Layouts as vLLM reads them (compressed-tensors `pack-quantized`; GPTQ version 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

BITS = 4
PER_WORD = 32 // BITS
ZERO = 1 << (BITS - 1)


def folder_weights(folder: Path) -> dict[str, NDArray[np.float32]]:
    """Every weight of a checkpoint folder in float32, packed ones decoded, by its usual name."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(path))
    found = {}
    for name in sorted(tensors):
        stem, _, last = name.rpartition(".")
        if last == "weight_packed":
            found[f"{stem}.weight"] = compressed_tensors(stem, tensors)
        elif last == "qweight":
            found[f"{stem}.weight"] = gptq(stem, tensors)
        elif last in ("weight", "bias"):
            found[name] = tensors[name].float().numpy()
    return found


def compressed_tensors(stem: str, tensors: Mapping[str, torch.Tensor]) -> NDArray[np.float32]:
    """[out, in]; codes lie along the rows, low bits first; `ValueError` where it is asymmetric."""
    _only(stem, tensors, {"weight_packed", "weight_scale", "weight_shape"})
    rows, cols = tensors[f"{stem}.weight_shape"].tolist()
    codes = _nibbles(tensors[f"{stem}.weight_packed"].numpy()).reshape(rows, -1)[:, :cols]
    scale = tensors[f"{stem}.weight_scale"].float().numpy()
    return _scaled(codes, scale)


def gptq(stem: str, tensors: Mapping[str, torch.Tensor]) -> NDArray[np.float32]:
    """[out, in]; codes lie along the columns of a transposed matrix."""
    _only(stem, tensors, {"qweight", "qzeros", "scales", "g_idx"})
    words = tensors[f"{stem}.qweight"].numpy().T  # [out, in / 8]
    codes = _nibbles(np.ascontiguousarray(words)).reshape(len(words), -1)
    scale = tensors[f"{stem}.scales"].float().numpy().T
    order = tensors.get(f"{stem}.g_idx")
    group = codes.shape[1] // scale.shape[1]
    if order is not None and not np.array_equal(order.numpy(), np.arange(codes.shape[1]) // group):
        raise ValueError(f"{stem}: groups are not in the order of the columns")
    zeros = _nibbles(tensors[f"{stem}.qzeros"].numpy())
    if not (zeros == ZERO - 1).all():  # version 1 stores one less
        raise ValueError(f"{stem} is not symmetric")
    return _scaled(codes, scale)


def _only(stem: str, tensors: Mapping[str, torch.Tensor], known: set[str]) -> None:
    own = {name.rpartition(".")[2] for name in tensors if name.startswith(f"{stem}.")}
    if own - known - {"bias"}:
        raise ValueError(f"{stem} has {sorted(own - known)}: another scheme")


def _nibbles(words: NDArray[np.int32]) -> NDArray[np.uint8]:
    """[..., words] -> [..., words, 8]"""
    shifts = np.arange(0, 32, BITS, dtype=np.uint32)
    return ((words.view(np.uint32)[..., None] >> shifts) & (2**BITS - 1)).astype(np.uint8)


def _scaled(codes: NDArray[np.uint8], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    signed = codes.astype(np.float32) - np.float32(ZERO)
    return signed * np.repeat(scale, codes.shape[1] // scale.shape[1], axis=1)
