"""TensorRT-LLM: the unified folder of NVIDIA ModelOpt, which its PyTorch backend reads.

Source: NVIDIA/TensorRT-LLM, tensorrt_llm/_torch: models/_arch_index.py @ 065ff9e (architectures),
modules/linear.py @ 00bbf71 (the schemes); attention_backend/trtllm.py and modules/attention.py of
2026 (the scales of a cache). Nothing was run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qconvert.formats.refusal import refuse
from qconvert.formats.serving.base import ServingTarget
from qconvert.formats.serving.capability import TRTLLM
from qconvert.formats.serving.fused import (
    QKV_AND_GATE_UP,
    STORED_JOINED,
    linears_of,
    module_of,
)
from qconvert.formats.serving.model_files import ARCHITECTURES
from qconvert.formats.serving.own_rule import OwnRule
from qconvert.formats.serving.planning import Drawn, Extras
from qconvert.formats.serving.wanted import Wanted
from qconvert.formats.trtllm.options import COMPATIBLE

AWQ = Wanted("w4a16", symmetric=True, groups=(128, 64))
FP8 = Wanted("fp8", static=True)
NAMES: Mapping[str, Wanted] = {
    "w4a16-awq": AWQ,
    "w4a8-awq": Wanted("w4a8-fp8"),
    "fp8": FP8,
    "w4a16": Wanted("w4a16", group=0, symmetric=True),
    "w8a16": Wanted("w8a16", group=0, symmetric=True),
}
"""Schemes as NVIDIA names them, where other programs name them otherwise."""

RULE = OwnRule(
    option=COMPATIBLE,
    program="ModelOpt",
    why=f"--{COMPATIBLE} rounds by ModelOpt's own rule, and a method would round otherwise",
    grids={
        "w4a16-g128": "modelopt_int4_g128",
        "w4a16-g64": "modelopt_int4_g64",
        "w8a16-channel": "modelopt_int8_channel",
        "fp8-channel": "modelopt_fp8_channel",
        "fp8-tensor": "modelopt_fp8_tensor_{dtype}",
        "fp8-block": "modelopt_fp8_block128",
        "nvfp4": "modelopt_nvfp4",
        "nvfp4a16": "modelopt_nvfp4",
    },
    others={
        "w4a8-fp8-g128": "ModelOpt searches for AWQ scales, and rounds twice by way of bfloat16",
    },
    alone=frozenset({"fp8-tensor"}),
)

BIASES_LOST = frozenset({"w8a16-channel", "w4a16-channel"})
"""Schemes whose product forgot biases before 2026."""


def extras(drawn: Drawn) -> Extras:
    """What is to be told; `Refused` where a mix holds linears that the checkpoint has joined:
    `apply_layerwise_quant_config` (models/modeling_utils.py @ 00bbf71) looks for q_proj and
    gate_proj."""
    found = {one.scheme.name for one in drawn.linears.values()}
    joined = [one for one in linears_of(drawn.source) if one.role in STORED_JOINED]
    if len(found) > 1 and joined:
        raise refuse(
            f"TensorRT-LLM does not find {module_of(joined[0])} in a mix: it looks for its parts,"
            " and would leave it in float without a word",
            f"one scheme for all linears: --scheme {min(found)}, without --layer",
        )
    return Extras(notes=tuple(_notes(drawn)))


def _notes(drawn: Drawn) -> Iterator[str]:
    if drawn.kv == "fp8":
        yield (
            "the scales of the FP8 cache are stored as NVIDIA's own folders have them; as far as"
            " was read, TensorRT-LLM loads them and computes with a scale of 1"
        )
    biased = {module_of(one) for one in drawn.source.tensors if one.part == "bias"}
    if any(
        one.module in biased and one.scheme.name in BIASES_LOST for one in drawn.linears.values()
    ):
        yield "biases: TensorRT-LLM up to 1.2 loses those of linears in this scheme"


TARGET = ServingTarget(
    name="trtllm",
    summary="folders for TensorRT-LLM: 4 and 8 bits, FP8, NVFP4; TensorRT-LLM itself was not run",
    containers=("modelopt",),
    by_bits={4: AWQ, 8: FP8},
    kernels=TRTLLM,
    fusing=QKV_AND_GATE_UP,
    serve="trtllm-serve {folder}",
    architectures={
        name: ARCHITECTURES[name]
        for name in ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi3")
    },
    notes=("what TensorRT-LLM loads was read in its source: it was not run here",),
    extras=extras,
    names=NAMES,
    caches=("fp8", "nvfp4"),
    float_caches=("nvfp4",),
    rule=RULE,
    elsewhere=dict.fromkeys(("w8a8", "w8a8-static"), "--to edge-llm --scheme w8a8-sq"),
    ending="trtllm",
    foreign=("modelopt",),
    also=("vllm",),
    also_schemes=frozenset({"fp8-channel"}),
)
