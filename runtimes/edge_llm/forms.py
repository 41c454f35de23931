"""How TensorRT Edge-LLM holds a linear of each `quant_algo`: data.

Source: tensorrt-edgellm 0.11.0, models/linear.py, checkpoint/repacking.py and config.py; what it
loaded of folders that nvidia-modelopt 0.47.0 had written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Shape = tuple[int, ...]
Held = Callable[[int, int, int], Shape]  # (rows, columns, group) -> shape in memory

COLUMN_SCALE = "pre_quant_scale"
FLOAT = "float16"


@dataclass(frozen=True, slots=True)
class Form:
    """One way in which a linear is stored and held."""

    module: str  # its class
    stored: tuple[str, ...]  # tensors of the folder, without the bias
    held: Mapping[str, tuple[Held, str]]  # buffer -> shape and type
    joined: bool = False  # whether q, k and v become one linear, "qkv_proj_fused"
    scaled: frozenset[str] = field(default_factory=frozenset)
    """Roles whose linears store COLUMN_SCALE, too."""


def _matrix(rows: int, columns: int, group: int) -> Shape:
    return rows, columns


def _number(rows: int, columns: int, group: int) -> Shape:
    return ()


def _each_row(rows: int, columns: int, group: int) -> Shape:
    return (rows,)


def _each_column(rows: int, columns: int, group: int) -> Shape:
    return (columns,)


def _fragments(rows: int, columns: int, group: int) -> Shape:
    """Tiles of 128 x 64 codes of 4 bits, eight rows of 512 bytes each."""
    return -(-rows // 128) * -(-columns // 64) * 8, 512


def _halved(rows: int, columns: int, group: int) -> Shape:
    return rows, columns // 2


def _groups(rows: int, columns: int, group: int) -> Shape:
    return rows, columns // group


def _turned(rows: int, columns: int, group: int) -> Shape:
    return columns // group, rows


_NVFP4 = {
    "weight": (_halved, "int8"),
    "weight_scale": (_groups, "float8_e4m3fn"),
    "weight_scale_2": (_number, "float32"),
    "input_scale": (_number, "float32"),
}

FLOAT_LINEAR = Form("FP16Linear", ("weight",), {"weight": (_matrix, FLOAT)}, joined=True)

FORMS: Mapping[str, Form] = {
    "FP8": Form(
        "FP8Linear",
        ("weight", "weight_scale", "input_scale"),
        {
            "weight": (_matrix, "float8_e4m3fn"),
            "weight_scale": (_number, FLOAT),
            "input_scale": (_number, FLOAT),
        },
    ),
    "W4A16_AWQ": Form(
        "ModelOptAWQPrepackedLinear",
        ("weight", "weight_scale"),
        {
            "weight": (_fragments, "int8"),
            "weight_scale": (_turned, FLOAT),
            COLUMN_SCALE: (_each_column, FLOAT),
        },
        scaled=frozenset({"attn_o", "ffn_down"}),
    ),
    "NVFP4": Form("ReplicatedLinear", tuple(_NVFP4), _NVFP4, joined=True),
    "W8A8_SQ_PER_CHANNEL": Form(
        "INT8SQLinear",
        ("weight", "weight_scale", "input_scale", COLUMN_SCALE),
        {
            "weight": (_matrix, "int8"),
            "weight_scale": (_each_row, "float32"),
            "input_scale": (_number, "float32"),
            COLUMN_SCALE: (_each_column, FLOAT),
        },
    ),
}
"""By `quant_algo`. What has no entry is not read, or is taken for something else: W8A16 becomes
FP16Linear with no error, FP8 for each row and W4A8_AWQ are taken for other forms, and W4A16_NVFP4
is taken for NVFP4 with an input scale of 1, unless its export has --no-quantize-activations."""

GROUPS: Mapping[str, int] = {"NVFP4": 16}  # where a folder names no group
CACHES = ("FP8",)  # scales of an NVFP4 cache would be taken for those of FP8
