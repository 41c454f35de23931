"""GPTQ: integer weights without zero points, as the most programs read them.

Source of the keys: vLLM 0.32, `auto_gptq.py` and `utils/gptq_utils.py`. `dynamic` rules are
tried in order against the names of joined linears; the first that fits decides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qconvert.formats.patterns import matches
from qconvert.formats.refusal import Reason, refuse
from qconvert.formats.serving.container import Config, Told
from qconvert.formats.serving.containers.assembled import Assembled
from qconvert.formats.serving.containers.claims import (
    Claims,
    check_told,
    quantization_of,
    scheme_like,
)
from qconvert.formats.serving.containers.names import patterns
from qconvert.formats.serving.layouts.gptq import Gptq
from qconvert.formats.serving.layouts.layout import Layout
from qconvert.formats.serving.scheme import Scheme
from qconvert.formats.shapes import COUNT, FLAG, SIZE, Keys, Shape, Values, maybe

BITS = (4, 8)
GROUPS = (0, 32, 64, 128)
ROW = -1  # the group of whole rows, in its configuration
SKIP, CHANGE = "-:", "+:"
_NUMBERS: Mapping[str, Shape] = {"bits": COUNT, "group_size": SIZE, "sym": FLAG}
READ: Mapping[str, Shape] = {
    **_NUMBERS, "desc_act": maybe(FLAG), "lm_head": FLAG, "dynamic": maybe(Values(Keys(_NUMBERS))),
}  # fmt: skip

_LAYOUT = Gptq()


def _layout(scheme: Scheme) -> Layout | None:
    held = (
        scheme.form == "int"
        and scheme.symmetric
        and scheme.activations is None
        and scheme.bits in BITS
        and scheme.group in GROUPS
    )
    return _LAYOUT if held else None


def _unheld(scheme: Scheme) -> Reason:
    problem = f"GPTQ holds no {scheme.name}"
    if scheme.form == "int" and scheme.activations is None and not scheme.symmetric:
        return Reason(
            f"{problem}: programs never read its zero points",
            "leave out --asymmetric, or --container awq (4 bits) or compressed-tensors",
        )
    return Reason(
        f"{problem}: it holds integer weights of 4 or 8 bits, groups of 32, 64, 128 or whole rows,"
        " and leaves activations as they are",
        "--scheme w4a16, or --container compressed-tensors",
    )


def _numbers(scheme: Scheme) -> dict[str, int]:
    return {"bits": scheme.bits, "group_size": scheme.group or ROW}


def _tell(told: Told) -> Config:
    if not told.linears:
        return Config(None)
    usual = Counter(one.scheme for one in told.linears).most_common(1)[0][0]
    others: dict[Scheme, list[str]] = {}
    for one in told.linears:
        if one.scheme != usual:
            others.setdefault(one.scheme, []).append(one.module)
    rules: dict[str, Any] = {f"{SKIP}{pattern}": {} for pattern in patterns(told.floats)}
    for scheme, modules in others.items():
        rules |= {f"{CHANGE}{pattern}": _numbers(scheme) for pattern in patterns(modules)}
    return Config(
        {
            "quant_method": "gptq",
            **_numbers(usual),
            "desc_act": False,
            "sym": True,
            "lm_head": False,
            "checkpoint_format": "gptq",
            "dynamic": rules,
        }
    )


def _claims(config: Mapping[str, Any], folder: Path) -> Claims | None:
    told = quantization_of(config)
    if str(told.get("quant_method", "")).lower() != "gptq":
        return None
    check_told(told, READ)
    rules = told.get("dynamic") or {}
    group = int(told.get("group_size", ROW))
    if told.get("desc_act") and group != ROW:
        raise refuse("the folder's columns are in an order of their own (desc_act): no program"
                     " takes that any more", "quantize again with static groups")  # fmt: skip

    def rule(module: str) -> tuple[bool, Mapping[str, Any]]:
        for pattern, changed in rules.items():
            skip = pattern.startswith(SKIP)
            if matches(pattern.removeprefix(SKIP if skip else CHANGE), module):
                return skip, changed
        return False, {}

    def scheme(module: str) -> Scheme:
        changed = rule(module)[1]
        size = int(changed.get("group_size", group))
        return scheme_like(
            "int",
            int(changed.get("bits", told.get("bits", 0))),
            0 if size == ROW else size,
            symmetric=bool(changed.get("sym", told.get("sym", True))),
        )

    def stays_float(module: str) -> bool:
        head = "." not in module  # of no block: quantized when "lm_head" says so, and then only
        return rule(module)[0] or (head and not told.get("lm_head", False))

    return Claims(scheme, stays_float)


CONTAINER = Assembled(
    name="gptq",
    summary="GPTQ: integer weights without zero points; vLLM, SGLang, transformers and others",
    layout=_layout,
    unheld=_unheld,
    tell=_tell,
    claims=_claims,
)
