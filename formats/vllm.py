"""vLLM: a folder that `vllm serve` reads with no flags."""

from __future__ import annotations

from qconvert.formats.serving.base import ServingTarget
from qconvert.formats.serving.capability import VLLM
from qconvert.formats.serving.fused import QKV_AND_GATE_UP
from qconvert.formats.serving.wanted import Wanted

# models/registry.py of vLLM 0.32 names no class of its own for these
_THROUGH_TRANSFORMERS = "vLLM has no class of its own for this model: it takes that of transformers"

TARGET = ServingTarget(
    name="vllm",
    summary="folders for vLLM: 4 and 8 bits, FP8 and FP4, on CPUs and NVIDIA GPUs",
    containers=("compressed-tensors", "gptq", "awq", "fp8", "modelopt"),
    by_bits={4: Wanted("w4a16"), 8: Wanted("w8a8")},
    kernels=VLLM,
    fusing=QKV_AND_GATE_UP,
    serve="vllm serve {folder}",
    model_notes=dict.fromkeys(("smollm3", "gpt_neox"), _THROUGH_TRANSFORMERS),
    foreign=("compressed-tensors", "gptq", "awq", "fp8"),
)
