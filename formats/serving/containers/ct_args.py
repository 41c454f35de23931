"""Schemes in the words of compressed-tensors, and back.

Source: compressed-tensors 0.17, `quantization/quant_args.py`; vLLM 0.32,
`compressed_tensors/compressed_tensors.py`, which says what combinations it computes with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qconvert.formats.refusal import refuse
from qconvert.formats.serving.containers.claims import scheme_like
from qconvert.formats.serving.containers.common import Span, span_of
from qconvert.formats.serving.layouts.float_quantized import FloatQuantized
from qconvert.formats.serving.layouts.fp4 import MxFp4, NvFp4
from qconvert.formats.serving.layouts.int_quantized import IntQuantized
from qconvert.formats.serving.layouts.layout import Layout
from qconvert.formats.serving.layouts.pack_quantized import PackQuantized
from qconvert.formats.serving.scheme import Activations, Form, Scheme

Number = Literal["int", "float"]


@dataclass(frozen=True, slots=True)
class Kind:
    """Linears that are stored alike, and told of alike."""

    format: str
    layout: Layout
    form: Form
    bits: tuple[int, ...]
    spans: Mapping[Span, str]  # which weights share a scale -> its `strategy`
    rounded: tuple[Activations | None, ...]  # what activations may be rounded to
    type: Number = "float"
    more: Mapping[str, Any] | None = None  # of the arguments of weights


_NVFP4 = NvFp4("weight_packed", "weight_global_scale", (1,), divisor=True)

KINDS: Sequence[Kind] = (
    Kind("pack-quantized", PackQuantized(), "int", (4, 8),
         {"group": "group", "channel": "channel"}, (None,), "int"),
    Kind("int-quantized", IntQuantized(), "int", (8,), {"channel": "channel"}, ("int8",), "int"),
    Kind("float-quantized", FloatQuantized("weight_scale", lambda rows, groups: (rows, 1)),
         "fp8", (8,), {"channel": "channel"}, ("fp8",)),
    Kind("float-quantized", FloatQuantized("weight_scale", lambda rows, groups: (1,)),
         "fp8", (8,), {"tensor": "tensor"}, ("fp8",)),
    Kind("float-quantized", FloatQuantized("weight_scale", lambda rows, groups: (rows, groups)),
         "fp8", (8,), {"block": "block"}, ("fp8",)),
    Kind("nvfp4-pack-quantized", _NVFP4, "nvfp4", (4,), {"group": "tensor_group"}, (None, "fp4")),
    Kind("mxfp4-pack-quantized", MxFp4(), "mxfp4", (4,), {"group": "group"}, (None,),
         more={"scale_dtype": "torch.uint8"}),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rounding:
    """Arguments of activations."""

    type: Number
    bits: int
    grouped: str = "group"  # `strategy` where columns share a scale
    dynamic: bool | str = True  # where nothing is fixed


ROUNDINGS: Mapping[Activations, Rounding] = {
    "int8": Rounding("int", 8),
    "fp8": Rounding("float", 8),
    "fp4": Rounding("float", 4, "tensor_group", "local"),
}


def kind_of(scheme: Scheme) -> Kind | None:
    """None for what the format has no place for."""
    fitting = [
        kind
        for kind in KINDS
        if kind.form == scheme.form
        and scheme.bits in kind.bits
        and scheme.activations in kind.rounded
        and (scheme.symmetric or None in kind.rounded)
    ]
    return next((kind for kind in fitting if span_of(scheme) in kind.spans), None)


def weights_args(scheme: Scheme, kind: Kind) -> dict[str, Any]:
    span = span_of(scheme)
    return {
        "num_bits": scheme.bits,
        "type": kind.type,
        "symmetric": scheme.symmetric,
        "strategy": kind.spans[span],
        "group_size": scheme.group if span == "group" else None,
        "block_structure": [scheme.grid.together, scheme.group] if span == "block" else None,
        "dynamic": False,
        "actorder": None,
        **(kind.more or {}),
    }


def activation_args(scheme: Scheme) -> dict[str, Any] | None:
    if scheme.activations is None:
        return None
    rounding = ROUNDINGS[scheme.activations]
    fixed, grouped = scheme.static, bool(scheme.group)
    return {
        "num_bits": rounding.bits,
        "type": rounding.type,
        "symmetric": True,
        "strategy": "tensor" if fixed else rounding.grouped if grouped else "token",
        "group_size": scheme.group or None,
        "dynamic": False if fixed else rounding.dynamic,
    }


def scheme_of_group(group: Mapping[str, Any], default_format: str | None) -> Scheme:
    """The scheme of one of `config_groups`; `Refused` where we know none like it."""
    weights, inputs = group.get("weights") or {}, group.get("input_activations") or {}
    written = group.get("format") or default_format
    kind = next((one for one in KINDS if one.format == written), None)
    if kind is None:
        known = ", ".join(dict.fromkeys(one.format for one in KINDS))
        raise refuse(f"the folder holds {written!r}: qconvert reads no such format",
                     f"it reads {known}")  # fmt: skip
    block = weights.get("block_structure")
    size = block[1] if block else weights.get("group_size")
    found = scheme_like(
        kind.form,
        int(weights.get("num_bits", 0)),
        size if isinstance(size, int) and size > 0 else 0,
        symmetric=weights.get("symmetric") is not False,
        activations=None if not inputs else _activations(inputs),
        static=bool(inputs) and inputs.get("dynamic") is False,
    )
    held = kind_of(found)
    meant = None if held is None else weights_args(found, held)["strategy"]
    if meant != weights.get("strategy"):
        raise refuse(
            f"the folder holds {written} with strategy {weights.get('strategy')!r}: qconvert reads "
            f"{found.name} with {meant!r}"
        )
    return found


def _activations(inputs: Mapping[str, Any]) -> Activations | None:
    told = (inputs.get("type"), inputs.get("num_bits"))
    for name, rounding in ROUNDINGS.items():
        if (rounding.type, rounding.bits) == told:
            return name
    raise refuse(f"the folder rounds activations to {told[0]} of {told[1]} bits",
                 "qconvert knows INT8, FP8 and NVFP4")  # fmt: skip
