"""ModelOpt's unified form: FP8 and NVFP4, told of twice, in config.json and hf_quant_config.json.

Source: vLLM 0.32, `modelopt.py`; NVIDIA/TensorRT-LLM 2edf354, `quantization/modelopt_config.py`,
which follows hf_quant_config.json where the two differ; folders that nvidia-modelopt 0.47.0 wrote.
Modules that stay float are looked for inside names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import qconvert
from qconvert.formats.refusal import Reason, refuse
from qconvert.formats.serving.container import Config, Told
from qconvert.formats.serving.containers.assembled import Assembled, CacheScales, InputScale
from qconvert.formats.serving.containers.claims import Claims, quantization_of, scheme_like
from qconvert.formats.serving.containers.common import Span, by_parts, span_of
from qconvert.formats.serving.layouts.float_quantized import FloatQuantized
from qconvert.formats.serving.layouts.fp4 import NvFp4
from qconvert.formats.serving.layouts.layout import Layout
from qconvert.formats.serving.layouts.numbers import E4M3_LARGEST, FP4_RANGE
from qconvert.formats.serving.scheme import Activations, Form, Scheme

FILE = "hf_quant_config.json"
MIXED = "MIXED_PRECISION"
KV = {"num_bits": 8, "type": "float", "dynamic": False}


@dataclass(frozen=True, slots=True)
class Algorithm:
    """One `quant_algo`."""

    name: str
    form: Form
    span: Span
    activations: Activations | None
    static: bool
    layout: Layout
    also: tuple[str, ...] = ()  # other spellings, upper case


_NVFP4 = NvFp4("weight", "weight_scale_2", (), divisor=False)

ALGORITHMS: Sequence[Algorithm] = (
    Algorithm("FP8", "fp8", "tensor", "fp8", True,
              FloatQuantized("weight_scale", lambda rows, groups: ())),
    Algorithm("FP8_PER_CHANNEL_PER_TOKEN", "fp8", "channel", "fp8", False,
              FloatQuantized("weight_scale", lambda rows, groups: (rows,))),
    Algorithm("FP8_PB_WO", "fp8", "block", "fp8", False,
              FloatQuantized("weight_scale", lambda rows, groups: (rows, 1, groups, 1)),
              ("FP8_BLOCK_SCALES",)),
    Algorithm("NVFP4", "nvfp4", "group", "fp4", False, _NVFP4),
    Algorithm("W4A16_NVFP4", "nvfp4", "group", None, False, _NVFP4),
)  # fmt: skip


def _algorithm(scheme: Scheme) -> Algorithm | None:
    facts = (scheme.form, scheme.activations, scheme.static)
    fitting = [one for one in ALGORITHMS if facts == (one.form, one.activations, one.static)]
    return next((one for one in fitting if one.span == span_of(scheme)), None)


def _layout(scheme: Scheme) -> Layout | None:
    found = _algorithm(scheme)
    return None if found is None else found.layout


def _unheld(scheme: Scheme) -> Reason:
    return Reason(
        f"the modelopt container holds no {scheme.name}: programs read FP8 and NVFP4 of it",
        "--scheme fp8, fp8-block or nvfp4, or --container compressed-tensors",
    )


def _tell(told: Told) -> Config:
    if not told.linears and told.kv is None:
        return Config(None)
    if not told.linears:
        raise refuse("the modelopt container holds no KV-cache scales alone",
                     "--container compressed-tensors")  # fmt: skip
    kept = by_parts("the modelopt container", told)
    schemes = list(dict.fromkeys(one.scheme for one in told.linears))
    each = {one: _numbers(one) for one in schemes}
    numbers = each[schemes[0]] if len(schemes) == 1 else {"quant_algo": MIXED}
    layers = {"quantized_layers": {one.module: each[one.scheme] for one in told.linears}}
    numbers = {**numbers, **(layers if len(schemes) > 1 else {})}
    producer = {"name": "qconvert", "version": qconvert.__version__}
    nested = {
        **numbers,
        "kv_cache_quant_algo": None if told.kv is None else told.kv.upper(),
        "exclude_modules": kept,
    }
    flat = {
        "quant_method": "modelopt",
        **numbers,
        **({} if told.kv is None else {"kv_cache_scheme": KV}),
        "ignore": kept,
        "producer": producer,
    }
    text = json.dumps({"producer": producer, "quantization": nested}, indent=2) + "\n"
    return Config(flat, {FILE: text.encode()})


def _numbers(scheme: Scheme) -> dict[str, Any]:
    found = _algorithm(scheme)
    assert found is not None
    size = {"group_size": scheme.group} if found.span == "group" else {}
    return {"quant_algo": found.name, **size}


def _claims(config: Mapping[str, Any], folder: Path) -> Claims | None:
    flat = quantization_of(config)
    nested = _nested(folder)
    if nested is None and not str(flat.get("quant_method", "")).lower().startswith("modelopt"):
        return None
    told = nested if nested is not None else flat
    kept = told.get("exclude_modules" if nested is not None else "ignore") or ()
    layers = told.get("quantized_layers") or {}
    whole = str(told.get("quant_algo") or "").upper()
    found = {one: _scheme(one) for one in dict.fromkeys(
        [whole] if whole != MIXED else [str(one["quant_algo"]).upper() for one in layers.values()]
    ) if one}  # fmt: skip

    def scheme(module: str) -> Scheme | None:
        if whole != MIXED:
            return found.get(whole)
        one = layers.get(module)
        return None if one is None else found[str(one["quant_algo"]).upper()]

    def stays_float(module: str) -> bool:
        return any(one in module or fnmatchcase(module, one) for one in kept)

    cache = told.get("kv_cache_quant_algo") or told.get("kv_cache_scheme")
    named = [one for one in kept if not set("*?[") & set(one)]
    return Claims(scheme, stays_float, named, inside=True, kv="fp8" if cache else None)


def _nested(folder: Path) -> Mapping[str, Any] | None:
    """The object in hf_quant_config.json, if there is one."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("quantization")
    except (OSError, ValueError, AttributeError, RecursionError) as fault:
        raise refuse(f"{path} cannot be read: {fault}") from None
    return found if isinstance(found, Mapping) else None


def _scheme(algorithm: str) -> Scheme:
    for one in ALGORITHMS:
        if algorithm in (one.name, *one.also):
            size = {"group": 16, "block": 128}.get(one.span, 0)
            bits = 4 if one.form == "nvfp4" else 8
            return scheme_like(one.form, bits, size, activations=one.activations, static=one.static)
    raise refuse(f"the folder is {algorithm} of ModelOpt",
                 f"qconvert reads {', '.join(one.name for one in ALGORITHMS)}")  # fmt: skip


CONTAINER = Assembled(
    name="modelopt",
    summary="FP8 and NVFP4 as NVIDIA publishes them; TensorRT-LLM, vLLM, SGLang",
    layout=_layout,
    unheld=_unheld,
    tell=_tell,
    claims=_claims,
    input_scales={
        ("fp8", True): InputScale("input_scale", (), E4M3_LARGEST),
        ("fp4", False): InputScale("input_scale", (), FP4_RANGE),
    },
    cache_scales=CacheScales(
        lambda module: f"{module}.k_scale", lambda module: f"{module}.v_scale", ()
    ),
)
