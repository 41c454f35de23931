"""ModelOpt's unified form, told of twice, in config.json and hf_quant_config.json.

Source: folders that nvidia-modelopt 0.47.0 wrote, and its `export/convert_hf_config.py` and
`export/quant_utils.py`; vLLM 0.32, `modelopt.py`; NVIDIA/TensorRT-LLM,
`quantization/modelopt_config.py` @ 2edf354 and `_torch/model_config.py` @ 008e0af: it follows
hf_quant_config.json where the two differ, and finds a layer of a mix by the name of its weights'
module, q, k, v by that of q, gate and up by that of gate (`_torch/models/modeling_utils.py`,
`apply_layerwise_quant_config`). Modules that stay float are looked for inside names.

Beyond ModelOpt's own, config.json says `group_size`: without it the loaders of integers fail if
they have that file alone. A mix has no `config_groups`; all loaders take `quantized_layers`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import qconvert
from qconvert.formats.careful import read_json_object
from qconvert.formats.refusal import Reason, refuse
from qconvert.formats.serving.container import CacheType, Config, Told
from qconvert.formats.serving.containers.assembled import (
    Assembled,
    CacheScales,
    ColumnScale,
    InputScale,
)
from qconvert.formats.serving.containers.claims import (
    AGAIN,
    Claims,
    quantization_of,
    scheme_like,
)
from qconvert.formats.serving.containers.common import by_parts
from qconvert.formats.serving.containers.modelopt_algorithms import (
    ALGORITHMS,
    Algorithm,
    algorithm_named,
    algorithm_of,
    joint_of,
)
from qconvert.formats.serving.layouts.layout import Layout
from qconvert.formats.serving.layouts.numbers import E4M3_LARGEST, FP4_RANGE, INT8_LARGEST
from qconvert.formats.serving.scheme import Scheme
from qconvert.formats.shapes import FLAG, SIZE, TEXT, TEXTS, Keys, Shape, Values, check, maybe

FILE = "hf_quant_config.json"
MIXED = "MIXED_PRECISION"
_LAYER: Mapping[str, Shape] = {
    "quant_algo": maybe(TEXT), "group_size": maybe(SIZE), "has_zero_point": maybe(FLAG),
}  # fmt: skip
READ: Mapping[str, Shape] = {
    **_LAYER, "exclude_modules": maybe(TEXTS), "ignore": maybe(TEXTS),
    "quantized_layers": maybe(Values(Keys(_LAYER))),
}  # fmt: skip
FP8_CACHE = {"dynamic": False, "num_bits": 8, "type": "float"}
CACHES: Mapping[str, tuple[CacheType, Any]] = {
    "FP8": ("fp8", FP8_CACHE),
    "NVFP4": ("nvfp4", "NVFP4"),
}
"""`kv_cache_quant_algo` -> the type, and `kv_cache_scheme` of config.json."""


def _layout(scheme: Scheme) -> Layout | None:
    found = algorithm_of(scheme)
    return None if found is None else found.layout


def _columns(scheme: Scheme) -> ColumnScale | None:
    found = algorithm_of(scheme)
    return None if found is None else found.columns


def _unheld(scheme: Scheme) -> Reason:
    return Reason(
        f"the modelopt container holds no {scheme.name}: it has FP8, NVFP4, and integers without "
        "zero points in groups of 128 or 64 or in whole rows",
        "--scheme fp8, fp8-block or nvfp4, or --container compressed-tensors",
    )


def _tell(told: Told) -> Config:
    if not told.linears and told.kv is None:
        return Config(None)
    if not told.linears:
        raise refuse("the modelopt container holds no KV-cache scales alone",
                     "--container compressed-tensors")  # fmt: skip
    kept = [*by_parts("the modelopt container", told), *_looked_up(told)]
    name = next((name for name, (kind, _) in CACHES.items() if kind == told.kv), None)
    schemes = list(dict.fromkeys(one.scheme for one in told.linears))
    mixed = len(schemes) > 1
    first = _algorithm(schemes[0])
    whole = {"quant_algo": MIXED} if mixed else first.told(schemes[0].group)
    more = {} if mixed else dict(first.more or {})
    producer = {"name": "qconvert", "version": qconvert.__version__}
    nested = {
        "quant_algo": whole.pop("quant_algo"),
        "kv_cache_quant_algo": name,
        **whole,
        **more,
        **({"quantized_layers": _layers(told, for_trtllm=True)} if mixed else {}),
        "exclude_modules": kept,
    }
    group = None if mixed else first.config_group
    flat = {
        **({"config_groups": {"group_0": {**group, "targets": ["Linear"]}}} if group else {}),
        "ignore": kept,
        "quant_algo": nested["quant_algo"],
        **whole,
        **({"kv_cache_scheme": CACHES[name][1]} if name else {}),
        **({"quantized_layers": _layers(told, for_trtllm=False)} if mixed else {}),
        "producer": producer,
        "quant_method": "modelopt",
    }
    text = json.dumps({"producer": producer, "quantization": nested}, indent=4)
    return Config(flat, {FILE: text.encode()})


def _algorithm(scheme: Scheme) -> Algorithm:
    found = algorithm_of(scheme)
    assert found is not None
    return found


def _looked_up(told: Told) -> Iterator[str]:
    """The embedding, which ModelOpt lists too."""
    yield from (module for module, role in told.names.items() if role == "embedding")


def _layers(told: Told, *, for_trtllm: bool) -> dict[str, Any]:
    """What is said of each linear of a mix. TensorRT-LLM takes a layer's name of an algorithm as it
    is, so it knows FP8 blocks by its own name only, and vLLM by ModelOpt's only."""
    found = {}
    for one in told.linears:
        algorithm = _algorithm(one.scheme)
        own = {**algorithm.told(one.scheme.group), **(algorithm.more or {})}
        found[one.module] = dict(algorithm.in_layers or own) if for_trtllm else own
    return found


def _claims(config: Mapping[str, Any], folder: Path) -> Claims | None:
    flat = quantization_of(config)
    nested = _nested(folder)
    if nested is None and not str(flat.get("quant_method", "")).lower().startswith("modelopt"):
        return None
    told = nested if nested is not None else flat
    check(told, Keys(READ), FILE if nested is not None else "config.json", AGAIN)
    kept = told.get("exclude_modules" if nested is not None else "ignore") or ()
    layers = told.get("quantized_layers") or {}
    whole = None if str(told.get("quant_algo") or "").upper() == MIXED else _said(told)
    each = {module: _said(one) for module, one in layers.items()} if whole is None else {}
    found = {one: _scheme(*one) for one in dict.fromkeys([whole, *each.values()]) if one}

    def scheme(module: str) -> Scheme | None:
        said = each.get(module) if whole is None else whole
        return None if said is None else found[said]

    def stays_float(module: str) -> bool:
        return any(one in module or fnmatchcase(module, one) for one in kept)

    named = [one for one in kept if not set("*?[") & set(one)]
    return Claims(scheme, stays_float, named, inside=True, kv=_cache(told))


Said = tuple[str, int | None, bool]
"""What is said of linears: the algorithm, the group, whether there are zero points."""


def _said(fields: Mapping[str, Any]) -> Said | None:
    name = fields.get("quant_algo")
    if not name:
        return None
    size = fields.get("group_size")
    return str(name), int(size) if size else None, bool(fields.get("has_zero_point"))


def _cache(told: Mapping[str, Any]) -> CacheType | None:
    said = told.get("kv_cache_quant_algo") or told.get("kv_cache_scheme")
    if not said:
        return None
    for name, (kind, flat) in CACHES.items():
        if said == name or said == flat:
            return kind
    raise refuse(f"the folder has a KV cache of {said}", f"qconvert reads {' and '.join(CACHES)}")


def _nested(folder: Path) -> Mapping[str, Any] | None:
    """The object in hf_quant_config.json, if there is one."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        found = read_json_object(path, AGAIN).get("quantization")
    except FileNotFoundError:
        return None
    return found if isinstance(found, Mapping) else None


def _scheme(name: str, group: int | None, zeros: bool) -> Scheme:
    one = algorithm_named(name)
    if one is None:
        raise refuse(f"the folder is {name} of ModelOpt",
                     f"qconvert reads {', '.join(one.name for one in ALGORITHMS)}")  # fmt: skip
    if zeros:
        raise refuse(f"the folder is {name} with zero points", "qconvert reads it without")
    sizes = {"block": (128,), "group": one.groups}.get(one.span, (0,))
    if group is None and len(sizes) > 1:
        raise refuse(
            f"the folder is {name}, and no group_size is said: TensorRT-LLM fails on that too",
            f"set group_size in {FILE}",
        )
    size = sizes[0] if group is None or len(sizes) == 1 else group
    return scheme_like(one.form, one.bits, size, activations=one.activations, static=one.static)


CONTAINER = Assembled(
    name="modelopt",
    summary="FP8, NVFP4 and integers as NVIDIA publishes them; TensorRT-LLM, vLLM, SGLang",
    layout=_layout,
    unheld=_unheld,
    tell=_tell,
    claims=_claims,
    input_scales={
        ("fp8", True): InputScale("input_scale", (), E4M3_LARGEST),
        ("fp4", False): InputScale("input_scale", (), FP4_RANGE),
        ("int8", True): InputScale("input_scale", (), INT8_LARGEST),
    },
    cache_scales=CacheScales(
        lambda module: f"{module}.k_scale",
        lambda module: f"{module}.v_scale",
        (),
        # 448 for both: ModelOpt 0.47, `export/unified_export_hf.py`; TensorRT-LLM @ 00bbf71 takes
        # the numbers as they are, so that no FP4 value under its e4m3 scale is beyond e4m3
        {"fp8": E4M3_LARGEST, "nvfp4": E4M3_LARGEST},
    ),
    column_scale=_columns,
    joints=joint_of,
)
