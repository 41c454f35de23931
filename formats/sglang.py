"""SGLang: the folder that vLLM reads, less the schemes that SGLang does not know."""

from __future__ import annotations

from qconvert.formats.serving.base import ServingTarget
from qconvert.formats.serving.capability import SGLANG
from qconvert.formats.serving.fused import QKV_AND_GATE_UP
from qconvert.formats.serving.model_files import ARCHITECTURES
from qconvert.formats.serving.wanted import Wanted

TARGET = ServingTarget(
    name="sglang",
    summary="the same folders as for vLLM, in the schemes that SGLang loads; SGLang was not run",
    containers=("compressed-tensors", "gptq", "awq", "fp8", "modelopt"),
    by_bits={4: Wanted("w4a16"), 8: Wanted("w8a8")},
    kernels=SGLANG,
    fusing=QKV_AND_GATE_UP,
    serve="python -m sglang.launch_server --model-path {folder}",
    architectures={
        name: ARCHITECTURES[name]
        for name in ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi3")
    },
    notes=("the folder is the one that --to vllm writes; what SGLang loads was read, not run",),
    also=("vllm",),
)
