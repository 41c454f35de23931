"""NVIDIA ModelOpt's unified form. What is stored of a linear tells how, by types and shapes:

| weight | weight_scale | |
|---|---|---|
| e4m3 [N, K] | float32 [] / [N] / [N/128, 1, K/128, 1] or [N/128, K/128] | FP8 |
| uint8 [N, K/2] | e4m3 [N, K/16], and weight_scale_2 [] | NVFP4 |
| uint8 [N/2, K] | float32 [N, groups] or [N] | 4 bits; a byte holds rows 2r (low) and 2r + 1 |
| int8 [N, K] | float32 [N] | 8 bits |

A pre_quant_scale [K] multiplies what the linear reads; weights here have taken it in. The
weight_scale_2 of 4-bit linears divides and multiplies again. Source: nvidia-modelopt 0.47,
`torch/export/{quant_utils,unified_export_hf}.py`; TensorRT-LLM `_torch/modules/linear.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qconvert.runtimes.second.served.fp4 import nvfp4
from qconvert.runtimes.second.served.fp8 import in_blocks
from qconvert.runtimes.second.serving import Decoder
from qconvert.runtimes.second.stored import Floats, Parts, scaled

BLOCK = 128


def _fp8(parts: Parts) -> Floats:
    values, scale = parts["weight"].floats(), parts["weight_scale"].floats()
    if scale.ndim < 2:
        values *= scale.reshape(-1, 1)
        return values
    rows = -(-len(values) // BLOCK)
    return in_blocks(values, scale.reshape(rows, -1), BLOCK, BLOCK)


def _nvfp4(parts: Parts) -> Floats:
    whole = parts["weight_scale_2"].floats().reshape(-1)[0]
    return nvfp4(parts["weight"], parts["weight_scale"], whole, divided=False)


def _int4(parts: Parts) -> Floats:
    raw = parts["weight"].raw()
    values = np.empty((2 * len(raw), raw.shape[1]), np.float32)
    signed = raw.view(np.int8)
    values[0::2] = (signed << np.int8(4)) >> np.int8(4)  # sign of the low nibble carried up
    values[1::2] = signed >> np.int8(4)
    return scaled(values, parts["weight_scale"].floats().reshape(len(values), -1))


def _int8(parts: Parts) -> Floats:
    values = parts["weight"].floats()
    return scaled(values, parts["weight_scale"].floats().reshape(len(values), -1))


KINDS: Mapping[tuple[str, str], Callable[[Parts], Floats]] = {
    ("F8_E4M3", "F32"): _fp8,
    ("U8", "F8_E4M3"): _nvfp4,
    ("U8", "F32"): _int4,
    ("I8", "F32"): _int8,
}
"""By the types of weight and weight_scale; a scale in another float type counts as F32."""


def _decoded(module: str, parts: Parts) -> Floats:
    scale = parts["weight_scale"].dtype
    values = KINDS[parts["weight"].dtype, "F32" if scale in ("F16", "BF16") else scale](parts)
    if "pre_quant_scale" in parts:
        values *= parts["pre_quant_scale"].floats()
    return values


@dataclass(frozen=True, slots=True)
class _Served:
    name: str = "modelopt"

    def decoder(self, config: Mapping[str, Any], folder: Path) -> Decoder | None:
        told = config.get("quantization_config") or {}
        method = str(told.get("quant_method", "")).lower()
        known = method.startswith("modelopt") or (folder / "hf_quant_config.json").is_file()
        return _decoded if known else None


SERVED = _Served()
