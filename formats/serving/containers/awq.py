"""AWQ ("gemm"): weights of 4 bits, one scheme for all.

Source of the keys: vLLM 0.32, `auto_awq.py`; LightLLM 87881ae. `modules_to_not_convert` is looked
for *inside* names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qconvert.formats.refusal import Reason, refuse
from qconvert.formats.serving.container import Config, Told
from qconvert.formats.serving.containers.assembled import Assembled
from qconvert.formats.serving.containers.claims import (
    Claims,
    check_told,
    quantization_of,
    scheme_like,
)
from qconvert.formats.serving.containers.common import by_parts, one_scheme
from qconvert.formats.serving.layouts.awq import Awq
from qconvert.formats.serving.layouts.layout import Layout
from qconvert.formats.serving.scheme import Scheme
from qconvert.formats.shapes import COUNT, FLAG, SIZE, TEXTS, Shape, maybe

BITS = 4
ROW = -1  # the group of whole rows, in its configuration

_LAYOUT = Awq()
READ: Mapping[str, Shape] = {
    "bits": COUNT, "w_bit": COUNT, "group_size": SIZE, "q_group_size": SIZE, "zero_point": FLAG,
    "modules_to_not_convert": maybe(TEXTS),
}  # fmt: skip


def _layout(scheme: Scheme) -> Layout | None:
    held = scheme.form == "int" and scheme.activations is None and scheme.bits == BITS
    return _LAYOUT if held else None


def _unheld(scheme: Scheme) -> Reason:
    return Reason(
        f"AWQ holds no {scheme.name}: it holds integer weights of 4 bits, and leaves activations"
        " as they are",
        "--scheme w4a16, or --container compressed-tensors",
    )


def _tell(told: Told) -> Config:
    scheme = one_scheme("AWQ", told)
    if scheme is None:
        return Config(None)
    return Config(
        {
            "quant_method": "awq",
            "bits": scheme.bits,
            "group_size": scheme.group or ROW,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": by_parts("AWQ", told),
        }
    )


def _claims(config: Mapping[str, Any], folder: Path) -> Claims | None:
    told = quantization_of(config)
    if str(told.get("quant_method", "")).lower() != "awq":
        return None
    check_told(told, READ)
    if str(told.get("version", "gemm")).lower() != "gemm":
        raise refuse(f"AWQ of version {told['version']!r}", "qconvert reads version gemm")
    size = int(told.get("group_size", told.get("q_group_size", ROW)))
    kept = told.get("modules_to_not_convert")

    def scheme(module: str) -> Scheme:
        bits = int(told.get("bits", told.get("w_bit", 0)))
        return scheme_like(
            "int", bits, 0 if size == ROW else size, symmetric=not told.get("zero_point", True)
        )

    def stays_float(module: str) -> bool:
        return any(part in module for part in kept or ())

    return Claims(scheme, None) if kept is None else Claims(scheme, stays_float, kept, inside=True)


CONTAINER = Assembled(
    name="awq",
    summary="AWQ: weights of 4 bits with zero points; vLLM, SGLang, LightLLM and others",
    layout=_layout,
    unheld=_unheld,
    tell=_tell,
    claims=_claims,
)
