"""TensorRT Edge-LLM: the same folders as for TensorRT-LLM, less what it reads otherwise.

Source: tensorrt-edgellm 0.11.0, `config.py` and `models/linear.py`. Its loader was run on a CPU,
its runtime was not. It takes other names of algorithms for the nearest that it knows, in silence:
FP8 per row for FP8 per tensor, W4A8 for the format of AutoAWQ, W8A16 for floats.
"""

from __future__ import annotations

from qconvert.formats.serving.base import ServingTarget
from qconvert.formats.serving.capability import EDGE_LLM
from qconvert.formats.serving.fused import QKV_AND_GATE_UP
from qconvert.formats.serving.model_files import ARCHITECTURES
from qconvert.formats.serving.planning import Drawn, Extras
from qconvert.formats.serving.wanted import Wanted

AWQ = Wanted("w4a16", symmetric=True, groups=(128, 64))
FP8 = Wanted("fp8", static=True)
FLAG = "--no-quantize-activations"


def extras(drawn: Drawn) -> Extras:
    """Of a dense model it takes W4A16_NVFP4 for NVFP4, and would round activations by a scale of 1
    that nothing has set: the export is to be told not to round any."""
    if not any(one.scheme.name == "nvfp4a16" for one in drawn.linears.values()):
        return Extras()
    note = f"export it with {FLAG}: without, Edge-LLM rounds activations by a scale that is not set"
    return Extras(notes=(note,), flags=(FLAG,))


TARGET = ServingTarget(
    name="edge-llm",
    summary="folders for TensorRT Edge-LLM: loaded by NVIDIA's loader on a CPU; not run",
    containers=("modelopt",),
    by_bits={4: AWQ, 8: FP8},
    kernels=EDGE_LLM,
    fusing=QKV_AND_GATE_UP,
    serve="tensorrt-edgellm-export {folder} {folder}-onnx",
    architectures={name: ARCHITECTURES[name] for name in ("llama", "mistral", "qwen2", "qwen3")},
    notes=("Edge-LLM's loader reads such folders on a CPU; its engines were not run here",),
    extras=extras,
    names={"w4a16-awq": AWQ, "fp8": FP8, "w8a8-sq": Wanted("w8a8", static=True)},
    float_caches=(),
    ending="edge-llm",
)
