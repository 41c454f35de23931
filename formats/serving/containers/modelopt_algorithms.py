"""What ModelOpt calls a `quant_algo`, as data: which scheme it is, and how its linears are stored.

Source: folders that nvidia-modelopt 0.47.0 wrote; NVIDIA/TensorRT-LLM,
`tensorrt_llm/_torch/modules/linear.py` @ 00bbf71, for W4A16 and for what its loaders ask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qconvert.formats.serving.container import Entry, Joint, Linear
from qconvert.formats.serving.containers.assembled import ColumnScale
from qconvert.formats.serving.containers.common import Span, span_of
from qconvert.formats.serving.fused import LINEARS, ROW_PARALLEL
from qconvert.formats.serving.layouts.float_quantized import FloatQuantized
from qconvert.formats.serving.layouts.fp4 import NvFp4
from qconvert.formats.serving.layouts.int4_rows import Int4Rows
from qconvert.formats.serving.layouts.int_quantized import IntQuantized
from qconvert.formats.serving.layouts.layout import Layout
from qconvert.formats.serving.layouts.numbers import E4M3_LARGEST
from qconvert.formats.serving.scheme import Activations, Form, Scheme
from qconvert.formats.tensor import QuantizedTensor

INT4_LARGEST = 8  # the magnitude of the lowest code

VANILLA = ColumnScale("pre_quant_scale", frozenset(ROW_PARALLEL))
"""Of o_proj and down_proj: TensorRT-LLM reads theirs without asking, and never looks for that of
linears which it joins (4 bits, activations in 16) or takes that of the first (activations in FP8).
"""
EVERY = ColumnScale("pre_quant_scale", frozenset(LINEARS), joined=True)

_FLOAT8 = {"dynamic": False, "num_bits": 8, "type": "float"}
_FLOAT4 = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16}
_AWQ = {"has_zero_point": False, "pre_quant_scale": True}


@dataclass(frozen=True, slots=True)
class Algorithm:
    """One `quant_algo`."""

    name: str  # of a whole folder
    form: Form
    bits: int
    span: Span
    activations: Activations | None
    static: bool
    layout: Layout
    groups: tuple[int, ...] = ()  # that it has, where a scheme may have several
    in_layers: Mapping[str, Any] | None = None
    """What TensorRT-LLM wants of a single layer, where that is not as for a whole folder."""
    more: Mapping[str, Any] | None = None  # further fields of hf_quant_config.json
    config_group: Mapping[str, Any] | None = None  # of config.json
    columns: ColumnScale | None = None
    joint: str = ""  # last part of the name of a scale that fused linears share

    def told(self, group: int) -> dict[str, Any]:
        """The fields that say it; `group`: columns that share a scale."""
        size = {"group_size": group} if self.span == "group" else {}
        return {"quant_algo": self.name, **size}


def _of_tensor(rows: int, groups: int) -> tuple[int, ...]:
    return ()


def _of_rows(rows: int, groups: int) -> tuple[int, ...]:
    return (rows,)


def _of_groups(rows: int, groups: int) -> tuple[int, ...]:
    return rows, groups


def _of_blocks(rows: int, groups: int) -> tuple[int, ...]:
    return rows, 1, groups, 1


_NVFP4 = NvFp4("weight", "weight_scale_2", (), divisor=False)

ALGORITHMS: Sequence[Algorithm] = (
    Algorithm("FP8", "fp8", 8, "tensor", "fp8", True, FloatQuantized("weight_scale", _of_tensor),
              config_group={"input_activations": _FLOAT8, "weights": _FLOAT8}),
    Algorithm("FP8_PER_CHANNEL_PER_TOKEN", "fp8", 8, "channel", "fp8", False,
              FloatQuantized("weight_scale", _of_rows)),
    # its name is in lower case: TensorRT-LLM knows just that, vLLM any
    Algorithm("fp8_pb_wo", "fp8", 8, "block", "fp8", False,
              FloatQuantized("weight_scale", _of_blocks),
              in_layers={"quant_algo": "FP8_BLOCK_SCALES", "group_size": 128}),
    Algorithm("NVFP4", "nvfp4", 4, "group", "fp4", False, _NVFP4, (16,),
              config_group={"input_activations": _FLOAT4, "weights": _FLOAT4}),
    Algorithm("W4A16_NVFP4", "nvfp4", 4, "group", None, False, _NVFP4, (16,),
              config_group={"weights": _FLOAT4}),
    Algorithm("W4A16_AWQ", "int", 4, "group", None, False, Int4Rows(_of_groups), (128, 64),
              more=_AWQ, columns=VANILLA),
    Algorithm("W4A8_AWQ", "int", 4, "group", "fp8", True, Int4Rows(_of_groups), (128,),
              more=_AWQ, columns=VANILLA, joint="weight_scale_2"),
    Algorithm("W8A16", "int", 8, "channel", None, False, IntQuantized(_of_rows)),
    Algorithm("W4A16", "int", 4, "channel", None, False, Int4Rows(_of_rows)),
    Algorithm("W8A8_SQ_PER_CHANNEL", "int", 8, "channel", "int8", True, IntQuantized(_of_rows),
              columns=EVERY),
)  # fmt: skip


def algorithm_of(scheme: Scheme) -> Algorithm | None:
    """The one in which linears of `scheme` are stored."""
    facts = (scheme.form, scheme.bits, scheme.activations, scheme.static)
    fitting = [
        one
        for one in ALGORITHMS
        if facts == (one.form, one.bits, one.activations, one.static) and scheme.symmetric
    ]
    span = span_of(scheme)
    return next(
        (one for one in fitting
         if one.span == span and (not one.groups or scheme.group in one.groups)),
        None,
    )  # fmt: skip


def algorithm_named(text: str) -> Algorithm | None:
    """By any of its spellings."""
    wanted = text.upper()
    for one in ALGORITHMS:
        other = (one.in_layers or {}).get("quant_algo", one.name)
        if wanted in (one.name.upper(), other):
            return one
    return None


def joint_of(linear: Linear) -> Joint | None:
    """W4A8_AWQ's `weight_scale_2`, which q, k, v and gate, up must have in common.

    At load TensorRT-LLM divides `weight_scale`, cast to float16, by it; its kernels multiply codes
    by the quotient in float16 and round the product to e4m3
    (`threadblock/dq_mma_multistage_finegrained.h` @ 3bbed0e). Here it is the smallest power of two
    with which no product is beyond 448, of the largest scale of all that share it: the quotients
    are exact then (our scales have eight significant bits), nothing is cut off, and products lie as
    high in e4m3 as they can. A power fixed for all models would be simpler, and cut off weights of
    some of them, or lose small ones of others. ModelOpt has the largest scale * 7 / 448.
    """
    found = algorithm_of(linear.scheme)
    if found is None or not found.joint:
        return None
    return Joint(Entry(f"{linear.module}.{found.joint}", "F32", ()), _reach, _power)


def _reach(tensor: QuantizedTensor) -> float:
    return float(np.abs(tensor.params["d"].astype(np.float32)).max())


def _power(largest: float) -> np.float32:
    if not largest > 0:
        return np.float32(1)
    part, exponent = np.frexp(np.float64(largest) * INT4_LARGEST / E4M3_LARGEST)
    return np.float32(np.ldexp(1.0, int(exponent) - int(part == 0.5)))
