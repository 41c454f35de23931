"""AWQ, "gemm". qweight int32 [K, N/8], qzeros int32 [groups, N/8], scales [groups, N].

The kernels take a word's nibbles, low bits first, for outputs 0, 2, 4, 6, 1, 3, 5, 7 (AutoAWQ
`awq/utils/packing_utils.py`; vLLM `auto_awq.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qconvert.runtimes.second.serving import Decoder
from qconvert.runtimes.second.stored import Floats, Parts, Raw, of_words, scaled

PLACES = np.argsort([0, 2, 4, 6, 1, 3, 5, 7])
"""Output of eight -> the nibble that it lies in."""


def _codes(words: Raw) -> Floats:
    """[lines, N/8] -> [N, lines]."""
    lines, count = words.shape
    nibbles = of_words(words, 4, 8 * count).reshape(lines, count, 8)
    return np.ascontiguousarray(nibbles[..., PLACES].reshape(lines, -1).T)


def _decoded(module: str, parts: Parts) -> Floats:
    scale = np.ascontiguousarray(parts["scales"].floats().T)
    zeros = _codes(parts["qzeros"].raw())
    codes = _codes(parts["qweight"].raw())
    values = codes.reshape(len(codes), scale.shape[1], -1) - zeros[..., None]
    return scaled(values.reshape(codes.shape), scale)


@dataclass(frozen=True, slots=True)
class _Served:
    name: str = "awq"

    def decoder(self, config: Mapping[str, Any], folder: Path) -> Decoder | None:
        told = config.get("quantization_config") or {}
        return _decoded if str(told.get("quant_method", "")).lower() == "awq" else None


SERVED = _Served()
