"""GPTQ. qweight int32 [K*b/32, N], qzeros int32 [groups, N*b/32], scales [groups, N], g_idx [K].

Zero points are stored less one, unless the folder says "gptq_v2" (AutoGPTQ
`nn_modules/qlinear`, GPTQModel `utils/model.py`). The width of a code follows from the shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qconvert.runtimes.second.serving import Decoder
from qconvert.runtimes.second.stored import Floats, Parts, of_words

WIDTHS = (2, 4, 8)
"""Bits of a code that fill words without a rest."""


def _decoded(less: int, module: str, parts: Parts) -> Floats:
    words = parts["qweight"].raw()
    groups = parts["g_idx"].raw()  # of each column
    count, rows = words.shape
    bits, left = divmod(32 * count, len(groups))
    if left or bits not in WIDTHS:
        raise ValueError(f"{count} words for {len(groups)} inputs")
    values = of_words(words.T, bits, len(groups))
    zeros = of_words(parts["qzeros"].raw(), bits, rows).T + np.float32(less)
    scale = parts["scales"].floats().T
    values -= zeros[:, groups]
    values *= scale[:, groups]
    return values


@dataclass(frozen=True, slots=True)
class _Served:
    name: str = "gptq"

    def decoder(self, config: Mapping[str, Any], folder: Path) -> Decoder | None:
        told = config.get("quantization_config") or {}
        if str(told.get("quant_method", "")).lower() != "gptq":
            return None
        return partial(_decoded, 0 if told.get("checkpoint_format") == "gptq_v2" else 1)


SERVED = _Served()
