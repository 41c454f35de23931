"""What each linear method of TensorRT-LLM's loader takes, as data; our restatement of its code.

Source: NVIDIA/TensorRT-LLM: `_torch/modules/linear.py` @ 00bbf71, `get_quant_method` and the
classes that it names; `_torch/models/checkpoints/hf/weight_mapper.py` @ 088aa36 (what is repeated)
and `_torch/models/modeling_phi3.py` of 2026 (what is taken apart). Multiples are those of the least
demanding GPU: `cpp/tensorrt_llm/kernels/cutlass_kernels/fpA_intB_gemm`. `copy_weight` casts without
a word, so a float of another width is taken, and so is a weight of another type, wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from qconvert.formats.trtllm.linears import Kind

FLOATS = ("F32", "BF16", "F16")
E4M3 = ("F8_E4M3",)
Shape = tuple[int, ...]
Columns = Literal["wanted", "taken", "ignored"]
IGNORED: Mapping[Kind, Columns] = {"qkv": "ignored", "gate_up": "ignored", "vanilla": "ignored"}


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a linear. `shapes`: of rows, columns and the size of groups, all that are
    taken, the usual one first."""

    dtypes: tuple[str, ...]
    shapes: Callable[[int, int, int], tuple[Shape, ...]]
    asserted: bool = False  # the loader looks at its type
    silent: bool = False  # where it is missing the loader goes on with what memory holds


@dataclass(frozen=True, slots=True)
class Method:
    """One linear method."""

    parts: Mapping[str, Stored]
    groups: tuple[int, ...] = ()  # that its kernels take; empty: it has no choice of them
    group: int = 1  # where there is no choice
    equal: tuple[str, ...] = ()  # numbers that must be alike in joined linears: asserted
    together: tuple[str, ...] = ()  # which all of the joined linears have, or none
    columns: Mapping[Kind, Columns] = field(default_factory=lambda: IGNORED)
    """What becomes of `pre_quant_scale`; of joined linears, the first one's is taken for all."""
    columns_like_model: bool = False  # its type must be the model's: asserted
    inverse: bool = False  # `weight_scale_inv` is taken before `weight_scale`
    cache: bool = False  # reads k_scale and v_scale
    follows: bool = False
    """Whether its scales come along where heads of keys and values are repeated for ranks, and
    where what is stored joined is taken apart."""
    floats: tuple[str, ...] = FLOATS  # types of a model that it computes with
    cols: int = 1  # per rank, inputs are a multiple of it
    rows: int = 1  # all outputs
    each: int = 1  # outputs of each joined linear


def scalar(rows: int, cols: int, group: int) -> tuple[Shape, ...]:
    return (), (1,)


def empty(rows: int, cols: int, group: int) -> tuple[Shape, ...]:
    return ((),)


def whole(rows: int, cols: int, group: int) -> tuple[Shape, ...]:
    return ((rows, cols),)


def by_row(rows: int, cols: int, group: int) -> tuple[Shape, ...]:
    return ((rows,),)


def by_group(rows: int, cols: int, group: int) -> tuple[Shape, ...]:
    return ((rows, cols // group),)


def by_block(rows: int, cols: int, group: int) -> tuple[Shape, ...]:
    high, wide = -(-rows // 128), -(-cols // 128)
    return (high, 1, wide, 1), (high, wide)


def paired_rows(rows: int, cols: int, group: int) -> tuple[Shape, ...]:
    return ((rows // 2, cols),)


def paired_columns(rows: int, cols: int, group: int) -> tuple[Shape, ...]:
    return ((rows, cols // 2),)


NUMBER = Stored(FLOATS, scalar)
UNSAID = Stored(FLOATS, scalar, silent=True)
FP8_WEIGHT = Stored(E4M3, whole)
INT4_WEIGHT = Stored(("U8", "I8"), paired_rows)
GROUP_SCALES = Stored(FLOATS, by_group)
FP4 = {
    "weight": Stored(("U8",), paired_columns),
    "weight_scale": Stored(E4M3, by_group, asserted=True),
    "weight_scale_2": NUMBER,
}
AWQ: Mapping[Kind, Columns] = {**IGNORED, "vanilla": "wanted"}
W4A8: Mapping[Kind, Columns] = {"qkv": "taken", "gate_up": "taken", "vanilla": "wanted"}
FP4_COLUMNS: Mapping[Kind, Columns] = {"qkv": "ignored", "gate_up": "taken", "vanilla": "taken"}

METHODS: Mapping[str, Method] = {
    "FP8": Method({"weight": FP8_WEIGHT, "weight_scale": UNSAID}, together=("input_scale",),
                  cache=True, follows=True),
    "FP8_PER_CHANNEL_PER_TOKEN": Method(
        {"weight": FP8_WEIGHT, "weight_scale": Stored(FLOATS, by_row, silent=True)}, inverse=True),
    "FP8_BLOCK_SCALES": Method(
        {"weight": FP8_WEIGHT, "weight_scale": Stored(FLOATS, by_block, silent=True)},
        inverse=True, floats=("BF16",), cols=128, each=128),
    "NVFP4": Method({**FP4, "input_scale": UNSAID}, group=16, columns=FP4_COLUMNS,
                    equal=("input_scale", "weight_scale_2"), cache=True, follows=True, cols=16),
    "W4A16_NVFP4": Method(FP4, group=16, equal=("weight_scale_2",), follows=True, cols=16),
    "W4A16_AWQ": Method({"weight": INT4_WEIGHT, "weight_scale": GROUP_SCALES}, (64, 128),
                        columns=AWQ, cols=32, rows=16, each=2),
    "W4A8_AWQ": Method(
        {"weight": INT4_WEIGHT, "weight_scale": GROUP_SCALES, "weight_scale_2": NUMBER,
         "input_scale": Stored(FLOATS, empty)},
        (128,), equal=("input_scale", "weight_scale_2"), columns=W4A8, columns_like_model=True,
        floats=("BF16", "F16"), cols=32, rows=16, each=2),
    "W8A16": Method({"weight": Stored(("I8", "U8"), whole), "weight_scale": Stored(FLOATS, by_row)},
                    cols=16, rows=8),
    "W4A16": Method({"weight": INT4_WEIGHT, "weight_scale": Stored(FLOATS, by_row)},
                    cols=32, rows=16, each=2),
}  # fmt: skip
"""quant_algo -> how it is loaded, of those that we write."""
UNRESTATED = (
    "NVFP4_ARC", "W4A8_NVFP4_FP8", "W4A8_MXFP4_FP8", "W4A8_MXFP4_MXFP8", "MXFP8", "W4A16_MXFP4",
)  # fmt: skip
"""What the loader reads, too; not restated here."""
