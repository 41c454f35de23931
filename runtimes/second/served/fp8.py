"""FP8 as DeepSeek publishes it: weight e4m3 [N, K], and what multiplies it: weight_scale_inv
[ceil(N/128), ceil(K/128)] despite its name, or weight_scale, one for a tensor (vLLM `fp8.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from qconvert.runtimes.second.serving import Decoder
from qconvert.runtimes.second.stored import Floats, Parts


def in_blocks(values: Floats, scale: Floats, high: int, wide: int) -> Floats:
    """`values` [N, K] times `scale` [ceil(N/high), ceil(K/wide)], in place."""
    for row in range(scale.shape[0]):
        for column in range(scale.shape[1]):
            block = values[row * high : (row + 1) * high, column * wide : (column + 1) * wide]
            block *= scale[row, column]
    return values


def _decoded(block: tuple[int, int], module: str, parts: Parts) -> Floats:
    values = parts["weight"].floats()
    if "weight_scale_inv" in parts:
        return in_blocks(values, parts["weight_scale_inv"].floats(), *block)
    values *= parts["weight_scale"].floats().reshape(())
    return values


@dataclass(frozen=True, slots=True)
class _Served:
    name: str = "fp8"

    def decoder(self, config: Mapping[str, Any], folder: Path) -> Decoder | None:
        told = config.get("quantization_config") or {}
        if str(told.get("quant_method", "")).lower() != "fp8":
            return None
        high, wide = told.get("weight_block_size") or (128, 128)
        return partial(_decoded, (int(high), int(wide)))


SERVED = _Served()
