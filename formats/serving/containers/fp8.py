"""FP8 as DeepSeek and others publish it: blocks of 128 x 128, or one fixed scale for each tensor.

Source of the keys: vLLM 0.32, `fp8.py` (`ignored_layers`, exact names); transformers and others
read `modules_to_not_convert`, so both are written.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qconvert.formats.refusal import Reason, refuse
from qconvert.formats.serving.container import Config, Told
from qconvert.formats.serving.containers.assembled import Assembled, InputScale
from qconvert.formats.serving.containers.claims import (
    Claims,
    check_told,
    quantization_of,
    scheme_like,
)
from qconvert.formats.serving.containers.common import Span, by_parts, one_scheme, span_of
from qconvert.formats.serving.layouts.float_quantized import FloatQuantized
from qconvert.formats.serving.layouts.layout import Layout
from qconvert.formats.serving.layouts.numbers import E4M3_LARGEST
from qconvert.formats.serving.scheme import Scheme
from qconvert.formats.shapes import COUNT, TEXT, TEXTS, Each, Shape, maybe

BLOCK = 128
READ: Mapping[str, Shape] = {
    "weight_block_size": maybe(Each(COUNT)), "activation_scheme": maybe(TEXT),
    "ignored_layers": maybe(TEXTS), "modules_to_not_convert": maybe(TEXTS),
}  # fmt: skip

LAYOUTS: Mapping[tuple[Span, bool], Layout] = {
    ("block", False): FloatQuantized("weight_scale_inv", lambda rows, groups: (rows, groups)),
    ("tensor", True): FloatQuantized("weight_scale", lambda rows, groups: ()),
}
"""By which weights share a scale, and whether the scheme is static."""


def _layout(scheme: Scheme) -> Layout | None:
    if scheme.form != "fp8" or scheme.activations != "fp8":
        return None
    return LAYOUTS.get((span_of(scheme), scheme.static))


def _unheld(scheme: Scheme) -> Reason:
    return Reason(
        f"the fp8 container holds no {scheme.name}: it holds FP8 in blocks, or with one fixed"
        " scale for each tensor",
        "--scheme fp8-block, --scheme fp8 --static, or --container compressed-tensors",
    )


def _tell(told: Told) -> Config:
    scheme = one_scheme("the fp8 container", told)
    if scheme is None:
        return Config(None)
    kept = by_parts("the fp8 container", told)
    block = {"weight_block_size": [scheme.grid.together, scheme.group]} if scheme.group else {}
    return Config(
        {
            "quant_method": "fp8",
            "activation_scheme": "static" if scheme.static else "dynamic",
            **block,
            "ignored_layers": kept,
            "modules_to_not_convert": kept,
        }
    )


def _claims(config: Mapping[str, Any], folder: Path) -> Claims | None:
    told = quantization_of(config)
    if str(told.get("quant_method", "")).lower() != "fp8":
        return None
    check_told(told, READ)
    block = told.get("weight_block_size")
    if block not in (None, [BLOCK, BLOCK]):
        raise refuse(f"the folder has blocks of {block}", f"qconvert reads {BLOCK} x {BLOCK}")
    found = scheme_like(
        "fp8", 8, block[1] if block else 0,
        activations="fp8", static=told.get("activation_scheme") == "static",
    )  # fmt: skip
    kept = told.get("ignored_layers") or told.get("modules_to_not_convert") or ()
    return Claims(lambda module: found, lambda module: module in kept, list(kept))


CONTAINER = Assembled(
    name="fp8",
    summary="FP8 in blocks of 128 x 128, or static per tensor; vLLM, SGLang, LightLLM",
    layout=_layout,
    unheld=_unheld,
    tell=_tell,
    claims=_claims,
    input_scales={("fp8", True): InputScale("input_scale", (), E4M3_LARGEST)},
)
