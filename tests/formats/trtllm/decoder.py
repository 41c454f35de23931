"""An independent decoder of TensorRT-LLM's folders: what their files mean, and nothing of qconvert.

It knows ModelOpt's unified Hugging Face form (NVIDIA/Model-Optimizer 0.47, `torch/export`;
NVIDIA/TensorRT-LLM@00bbf71, `_torch/modules/linear.py`) and is strict: a tensor of another type or
shape, one that is missing and one that nothing explains are errors. A linear computes

    y = (x * pre_quant_scale) @ dequant(weight)^T + bias

with x * pre_quant_scale rounded as its algorithm says. `decode` gives float32 weights that have
taken the vector in, and what is rounded apart from them; `simulate.py` computes with both.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

Tensor = torch.Tensor
Parts = dict[str, Tensor]  # last part of the name -> what is stored of one linear
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
FLOATS = (torch.bfloat16, torch.float16, torch.float32)


class Wrong(Exception):
    """The files contradict each other."""


@dataclass(frozen=True)
class Decoded:
    """A folder as a float model."""

    config: Mapping[str, Any]  # without quantization_config
    state: dict[str, Tensor]  # float32, by names of the checkpoint; pre_quant_scale taken in
    algorithms: dict[str, str]  # module -> quant_algo
    rounding: dict[str, Rounding]  # module -> of x * pre_quant_scale
    columns: dict[str, Tensor]  # module -> pre_quant_scale
    cache: dict[int, tuple[float, float]]  # layer -> k_scale, v_scale
    cache_kind: str | None  # "FP8", "NVFP4"


def expect(tensor: Tensor, dtype: torch.dtype, *shape: int) -> Tensor:
    if tensor.dtype != dtype or tuple(tensor.shape) != shape:
        raise Wrong(f"{tensor.dtype} {tuple(tensor.shape)} in place of {dtype} {shape}")
    return tensor


def one(tensor: Tensor) -> float:
    found = expect(tensor, torch.float32).item()
    if not 0 < found < float("inf"):
        raise Wrong(f"a scale of {found}")
    return found


def int4(packed: Tensor) -> Tensor:
    """Two rows share a byte, the even one in its low half; two's complement."""
    expect(packed, torch.uint8, *packed.shape)
    codes = torch.stack([packed & 15, packed >> 4], 1).reshape(-1, packed.shape[1]).float()
    return codes - 16 * (codes > 7)


def fp4(packed: Tensor) -> Tensor:
    """Two columns share a byte, the even one in its low half."""
    expect(packed, torch.uint8, *packed.shape)
    codes = torch.stack([packed & 15, packed >> 4], -1).reshape(packed.shape[0], -1)
    return E2M1[codes.long()]


Rounding = tuple[str, float]
"""Of what a linear reads: "fp8", "fp4" or "int8" with a fixed scale; "fp8 of" with so many columns
that share a scale of their own, 0 for a row."""
Linear = tuple[Tensor, Rounding | None]  # dequantized weight, rounding of inputs


def fp8(parts: Parts, group: int | None) -> Linear:
    weight = expect(parts["weight"], torch.float8_e4m3fn, *parts["weight"].shape)
    return weight.float() * one(parts["weight_scale"]), ("fp8", one(parts["input_scale"]))


def fp8_rows(parts: Parts, group: int | None) -> Linear:
    weight = expect(parts["weight"], torch.float8_e4m3fn, *parts["weight"].shape)
    scale = expect(parts["weight_scale"], torch.float32, weight.shape[0])
    return weight.float() * scale[:, None], ("fp8 of", 0)


def fp8_blocks(parts: Parts, group: int | None) -> Linear:
    weight = expect(parts["weight"], torch.float8_e4m3fn, *parts["weight"].shape)
    rows, cols = weight.shape
    scale = parts["weight_scale"]
    high, wide = -(-rows // 128), -(-cols // 128)
    shape = (high, 1, wide, 1) if scale.dim() == 4 else (high, wide)
    scale = expect(scale, torch.float32, *shape).reshape(high, wide)
    whole = scale.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :cols]
    return weight.float() * whole, ("fp8 of", 128)


def nvfp4(parts: Parts, group: int | None) -> Linear:
    return nvfp4_weight(parts, group)[0], ("fp4", one(parts["input_scale"]))


def nvfp4_weight(parts: Parts, group: int | None) -> Linear:
    if group != 16:
        raise Wrong(f"NVFP4 in groups of {group}")
    codes = fp4(parts["weight"])
    rows, cols = codes.shape
    scale = expect(parts["weight_scale"], torch.float8_e4m3fn, rows, cols // 16).float()
    scale = scale * one(parts["weight_scale_2"])
    return codes * scale.repeat_interleave(16, 1), None


def int4_groups(parts: Parts, group: int | None) -> Linear:
    if not group:
        raise Wrong("groups of no size")
    codes = int4(parts["weight"])
    scale = expect(parts["weight_scale"], torch.float32, codes.shape[0], codes.shape[1] // group)
    return codes * scale.repeat_interleave(group, 1), None


def int4_fp8(parts: Parts, group: int | None) -> Linear:
    """The loader divides weight_scale by weight_scale_2 and multiplies the product by it again."""
    one(parts["weight_scale_2"])
    return int4_groups(parts, group)[0], ("fp8", one(parts["input_scale"]))


def int4_rows(parts: Parts, group: int | None) -> Linear:
    codes = int4(parts["weight"])
    return codes * expect(parts["weight_scale"], torch.float32, codes.shape[0])[:, None], None


def int8_rows(parts: Parts, group: int | None) -> Linear:
    codes = expect(parts["weight"], torch.int8, *parts["weight"].shape).float()
    return codes * expect(parts["weight_scale"], torch.float32, codes.shape[0])[:, None], None


def smoothquant(parts: Parts, group: int | None) -> Linear:
    return int8_rows(parts, group)[0], ("int8", one(parts["input_scale"]))


READERS: Mapping[str, tuple[Callable[[Parts, int | None], Linear], set[str]]] = {
    "FP8": (fp8, {"weight_scale", "input_scale"}),
    "FP8_PER_CHANNEL_PER_TOKEN": (fp8_rows, {"weight_scale"}),
    "FP8_BLOCK_SCALES": (fp8_blocks, {"weight_scale"}),
    "FP8_PB_WO": (fp8_blocks, {"weight_scale"}),
    "NVFP4": (nvfp4, {"weight_scale", "weight_scale_2", "input_scale"}),
    "W4A16_NVFP4": (nvfp4_weight, {"weight_scale", "weight_scale_2"}),
    "W4A16_AWQ": (int4_groups, {"weight_scale"}),
    "W4A8_AWQ": (int4_fp8, {"weight_scale", "weight_scale_2", "input_scale"}),
    "W8A16": (int8_rows, {"weight_scale"}),
    "W4A16": (int4_rows, {"weight_scale"}),
    "W8A8_SQ_PER_CHANNEL": (smoothquant, {"weight_scale", "input_scale", "pre_quant_scale"}),
}
"""quant_algo in upper case -> how it is read, and the scales that each of its linears has."""

BOTH = ("quant_algo", "group_size", "quantized_layers")


def told(folder: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """config.json, and what hf_quant_config.json says, which the flat form must not contradict."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    nested = json.loads((folder / "hf_quant_config.json").read_text("utf-8"))["quantization"]
    flat = config["quantization_config"]
    for key in BOTH:
        if flat.get(key, nested.get(key)) != nested.get(key):
            raise Wrong(f"{key}: {flat[key]} and {nested.get(key)}")
    if sorted(flat["ignore"]) != sorted(nested["exclude_modules"]):
        raise Wrong("two lists of what stays float")
    return config, nested


def stored(folder: Path) -> dict[str, Tensor]:
    """All tensors, of one file or of all that the index names, each found once."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return load_file(folder / "model.safetensors")
    places = json.loads(index.read_text("utf-8"))["weight_map"]
    found: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        for key, tensor in load_file(folder / name).items():
            if places.get(key) != name or key in found:
                raise Wrong(f"{key} is not where the index says")
            found[key] = tensor
    if found.keys() != places.keys():
        raise Wrong("the index names what is stored nowhere")
    return found


def decode(folder: Path) -> Decoded:
    """`Wrong` or KeyError where the files do not fit together."""
    config, quant = told(folder)
    state: dict[str, Tensor] = {}
    algorithms: dict[str, str] = {}
    rounding, columns = {}, {}
    caches: dict[str, float] = {}
    for module, parts in by_module(stored(folder)).items():
        caches.update({f"{module}.{key}": one(parts.pop(key))
                       for key in ("k_scale", "v_scale") if key in parts})  # fmt: skip
        kind, group = algorithm_of(module, parts, quant)
        if kind is None:
            state.update(floats(module, parts))
            continue
        weight, rounds = READERS[kind][0](parts, group)
        wanted = {"weight", *READERS[kind][1]}
        if not wanted <= parts.keys() or parts.keys() - wanted - {"bias", "pre_quant_scale"}:
            raise Wrong(f"{module}, {kind}, has {sorted(parts)}")
        if "pre_quant_scale" in parts:
            vector = parts["pre_quant_scale"]
            if vector.dtype not in FLOATS or vector.shape != weight.shape[1:]:
                raise Wrong(f"{module}.pre_quant_scale: {vector.dtype} {tuple(vector.shape)}")
            columns[module] = vector.float()
            weight = weight * columns[module]
        algorithms[module] = kind
        if rounds is not None:
            rounding[module] = rounds
        floated = {"bias": parts["bias"]} if "bias" in parts else {}
        state.update({f"{module}.weight": weight, **floats(module, floated)})
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    kind = quant.get("kv_cache_quant_algo")
    return Decoded(plain, state, algorithms, rounding, columns, by_layer(caches, kind), kind)


def by_module(tensors: Mapping[str, Tensor]) -> dict[str, Parts]:
    found: dict[str, Parts] = {}
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        found.setdefault(module, {})[part] = tensor
    return found


def algorithm_of(
    module: str, parts: Parts, quant: Mapping[str, Any]
) -> tuple[str | None, int | None]:
    """By the configuration alone; only matrices of blocks and the head are linears."""
    weight = parts.get("weight")
    if weight is None or weight.dim() != 2 or module.endswith("embed_tokens"):
        return None, None
    if any(fnmatchcase(module, pattern) for pattern in quant["exclude_modules"]):
        return None, None
    if quant["quant_algo"] == "MIXED_PRECISION":
        own = quant["quantized_layers"].get(module)
        return (None, None) if own is None else (own["quant_algo"].upper(), own.get("group_size"))
    return quant["quant_algo"].upper(), quant.get("group_size")


def floats(module: str, parts: Parts) -> dict[str, Tensor]:
    for part, tensor in parts.items():
        if tensor.dtype not in FLOATS or part not in ("weight", "bias"):
            raise Wrong(f"{module}.{part} is {tensor.dtype} and stays float")
    return {f"{module}.{part}": tensor.float() for part, tensor in parts.items()}


def by_layer(caches: Mapping[str, float], kind: str | None) -> dict[int, tuple[float, float]]:
    if bool(caches) != (kind is not None):
        raise Wrong(f"a cache in {kind} with {len(caches)} scales")
    ends = (".k_proj.k_scale", ".v_proj.v_scale")
    starts = {name.removesuffix(end) for name in caches for end in ends if name.endswith(end)}
    if {start + end for start in starts for end in ends} != set(caches):
        raise Wrong(f"scales of a cache: {sorted(caches)}")
    return {
        int(start.split(".layers.")[1].split(".")[0]): (caches[start + ends[0]],
                                                        caches[start + ends[1]])
        for start in starts
    }  # fmt: skip
