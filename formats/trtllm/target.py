"""TensorRT-LLM: the unified folder of NVIDIA ModelOpt, which its PyTorch backend reads.

Source: NVIDIA/TensorRT-LLM, tensorrt_llm/_torch: models/_arch_index.py @ 065ff9e (architectures),
modules/linear.py @ 00bbf71 (the schemes). Nothing was run.
"""

from __future__ import annotations

from collections.abc import Mapping

from qconvert.formats.serving.base import ServingTarget
from qconvert.formats.serving.capability import TRTLLM
from qconvert.formats.serving.fused import QKV_AND_GATE_UP
from qconvert.formats.serving.model_files import ARCHITECTURES
from qconvert.formats.serving.wanted import Wanted

AWQ = Wanted("w4a16", symmetric=True)
FP8 = Wanted("fp8", static=True)
NAMES: Mapping[str, Wanted] = {
    "w4a16-awq": AWQ,
    "w4a8-awq": Wanted("w4a8-fp8"),
    "fp8": FP8,
    "w4a16": Wanted("w4a16", group=0, symmetric=True),
    "w8a16": Wanted("w8a16", group=0, symmetric=True),
}
"""Schemes as NVIDIA names them, where other programs name them otherwise."""

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
    names=NAMES,
    caches=("fp8", "nvfp4"),
    also=("vllm",),
    also_schemes=frozenset({"fp8-channel"}),
)
