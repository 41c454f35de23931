"""compressed-tensors: each group of its configuration says how linears with some names lie.

Written from compressed-tensors 0.17 (`quantization/quant_args.py`, `compressors/*`) and its rules
of names (`utils/match.py`): a name, "re:" and a pattern from its start, or the class "Linear" for
all that no other group names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qconvert.runtimes.second.served.fp4 import mxfp4, nvfp4
from qconvert.runtimes.second.served.fp8 import in_blocks
from qconvert.runtimes.second.serving import Decoder
from qconvert.runtimes.second.stored import Floats, Parts, of_words, scaled

Args = Mapping[str, Any]  # `weights` of a group


def _packed(args: Args, parts: Parts) -> Floats:
    """Codes along the inputs; zero points along the outputs, in the middle where none are stored.
    Computed as code * scale - zero * scale, which is exact for scales of 16 bits."""
    bits = int(args["num_bits"])
    rows, cols = (int(size) for size in parts["weight_shape"].raw())
    scale = parts["weight_scale"].floats().reshape(rows, -1)
    codes = of_words(parts["weight_packed"].raw(), bits, cols)
    if "weight_zero_point" not in parts:
        return scaled(codes - np.float32(1 << (bits - 1)), scale)
    zeros = of_words(parts["weight_zero_point"].raw().T, bits, rows).T
    values = scaled(codes, scale).reshape(rows, scale.shape[1], -1)
    values -= (zeros * scale)[..., None]
    return values.reshape(rows, cols)


def _bytes(args: Args, parts: Parts) -> Floats:
    """Numbers of one byte, and a scale for the tensor, for each row, or for each block."""
    values = parts["weight"].floats()
    scale = parts["weight_scale"].floats()
    if args.get("strategy") == "block":
        return in_blocks(values, scale, *(int(size) for size in args["block_structure"]))
    values *= scale.reshape(-1, 1)
    return values


def _nvfp4(args: Args, parts: Parts) -> Floats:
    whole = parts["weight_global_scale"].floats().reshape(-1)[0]
    return nvfp4(parts["weight_packed"], parts["weight_scale"], whole, divided=True)


def _mxfp4(args: Args, parts: Parts) -> Floats:
    return mxfp4(parts["weight_packed"], parts["weight_scale"])


FORMATS: Mapping[str, Callable[[Args, Parts], Floats]] = {
    "pack-quantized": _packed,
    "int-quantized": _bytes,
    "float-quantized": _bytes,
    "nvfp4-pack-quantized": _nvfp4,
    "mxfp4-pack-quantized": _mxfp4,
}
Group = Mapping[str, Any]
CLASS = "Linear"
"""Of every linear, whatever its name."""


def _decoded(told: Mapping[str, Any], module: str, parts: Parts) -> Floats:
    group = _group(list((told.get("config_groups") or {}).values()), module)
    form = group.get("format") or told["format"]
    return FORMATS[form](group["weights"], parts)


def _group(groups: Sequence[Group], module: str) -> Group:
    """The first group with a target that fits: names and patterns before the class."""
    for fits in (_by_name, _by_class):
        for group in groups:
            if any(fits(target, module) for target in group.get("targets") or ()):
                return group
    raise KeyError(f"no group of the configuration tells of {module}")


def _by_name(target: str, module: str) -> bool:
    if target.startswith("re:"):
        return re.match(target[3:], module) is not None
    return target == module


def _by_class(target: str, module: str) -> bool:
    return target == CLASS


@dataclass(frozen=True, slots=True)
class _Served:
    name: str = "compressed-tensors"

    def decoder(self, config: Mapping[str, Any], folder: Path) -> Decoder | None:
        told = config.get("quantization_config") or config.get("compression_config") or {}
        if told.get("quant_method") != "compressed-tensors":
            return None
        return partial(_decoded, told)


SERVED = _Served()
