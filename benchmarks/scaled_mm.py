"""FP8 tensors of a TensorRT-LLM folder, multiplied on a GPU by torch._scaled_mm: not TensorRT-LLM.

    qconvert MODEL --to trtllm --scheme fp8 --out out        # or fp8-channel
    python benchmarks/scaled_mm.py out [--rows 1,16,256,4096] [--tile 8] [--seconds 0.5]

torch's kernels read the same bytes as TensorRT-LLM's (e4m3 weights [out, in], a float32 scale of
the tensor or of each row, one of the activations or of each token), so their product shows that the
stored tensors mean what we decode, and what FP8 is worth on this GPU beside bfloat16. It says
nothing of TensorRT-LLM's own kernels. One linear of each shape is taken; `--tile` repeats it along
both sides, for shapes of a larger model with real codes.

One JSON line for each shape and number of rows. `error`: of the product against the decoded floats
multiplied in float32, inputs rounded in both, relative (bfloat16 output alone gives 0.0017);
`error_of_rounding`: against inputs as they are; `ratio`: TFLOP/s beside `torch.matmul` in bfloat16
in the same run, of the product alone, and with the rounding of its inputs. Times are medians, with
the cache emptied between. Exit code 3 without a GPU that multiplies FP8.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

LABEL = "torch._scaled_mm, not TensorRT-LLM"
LARGEST = 448.0
LEAST_GPU = (8, 9)  # that multiplies FP8
MULTIPLE = 16  # of both sides of a weight: cuBLASLt's rule for FP8
CACHE_BYTES = 256 << 20  # more than any GPU caches


@dataclass(frozen=True)
class Linear:
    """As it is stored. `scale`: [] or [out]; `inputs`: [], or None where each token has its own."""

    name: str
    weight: torch.Tensor  # e4m3 [out, in]
    scale: torch.Tensor
    inputs: torch.Tensor | None

    def to(self, device: str, tile: int) -> Linear:
        inputs = None if self.inputs is None else self.inputs.to(device)
        bits = self.weight.view(torch.uint8).repeat(tile, tile).to(device)
        scale = self.scale if self.scale.dim() == 0 else self.scale.repeat(tile)
        return Linear(self.name, bits.view(torch.float8_e4m3fn), scale.to(device), inputs)

    @property
    def floats(self) -> torch.Tensor:
        """Decoded, float32 [out, in]."""
        scale = self.scale if self.scale.dim() == 0 else self.scale[:, None]
        return self.weight.float() * scale


def linears(folder: Path) -> Iterator[Linear]:
    """One linear of each shape among those in FP8, of the first file that has it; `ValueError`
    where there is none."""
    seen: set[tuple[int, ...]] = set()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            names = set(file.keys())
            for name in sorted(names):
                module, _, part = name.rpartition(".")
                one = file.get_slice(name)
                shape = tuple(one.get_shape())
                if part != "weight" or one.get_dtype() != "F8_E4M3" or shape in seen:
                    continue
                scale = file.get_tensor(f"{module}.weight_scale")
                if scale.dim() > 1:
                    raise ValueError(f"{module} has scales of blocks: --scheme fp8 or fp8-channel")
                seen.add(shape)
                fixed = f"{module}.input_scale"
                inputs = file.get_tensor(fixed) if fixed in names else None
                yield Linear(module, file.get_tensor(name), scale, inputs)
    if not seen:
        raise ValueError(f"{folder} holds no weights in FP8")


def activations(linear: Linear, rows: int, seed: int = 0) -> torch.Tensor:
    """Normal numbers [rows, in] in bfloat16, the largest near what the stored scale covers."""
    device = linear.weight.device
    drawn = torch.Generator(device).manual_seed(seed)
    found = torch.randn(rows, linear.weight.shape[1], generator=drawn, device=device)
    if linear.inputs is not None:
        found *= linear.inputs * LARGEST / found.abs().max()
    return found.bfloat16()


def rounded(linear: Linear, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`x` in e4m3, and its scale: float32 [], or [rows, 1] of each token."""
    values = x.float()
    if linear.inputs is None:
        scale = values.abs().amax(1, keepdim=True).clamp_min(1e-30) / LARGEST
    else:
        scale = linear.inputs
    inside = (values / scale).clamp(-LARGEST, LARGEST)
    return inside.to(torch.float8_e4m3fn), scale


def product(linear: Linear, bits: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """bfloat16 [rows, out]. The kernel wants the second matrix column by column, which the
    transpose of a stored weight is, and scales of both sides alike: numbers, or [rows, 1] with
    [1, out], all float32."""
    other = linear.scale if linear.scale.dim() == 0 else linear.scale[None, :]
    if (scale.dim() == 0) != (other.dim() == 0):
        raise ValueError(f"{linear.name}: one side has a scale for each row, the other has not")
    found: torch.Tensor = torch._scaled_mm(
        bits, linear.weight.t(), scale_a=scale, scale_b=other, out_dtype=torch.bfloat16
    )
    return found


def errors(linear: Linear, x: torch.Tensor) -> dict[str, float]:
    """Of the product beside the decoded floats, multiplied in float32."""
    bits, scale = rounded(linear, x)
    found, floats = product(linear, bits, scale).float(), linear.floats.t()
    return {
        "error": distance(found, (bits.float() * scale) @ floats),
        "error_of_rounding": distance(found, x.float() @ floats),
    }


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def speeds(linear: Linear, x: torch.Tensor, seconds: float) -> dict[str, float]:
    """TFLOP/s of the product in FP8, of that with the rounding of its inputs, of bfloat16."""
    bits, scale = rounded(linear, x)
    plain = linear.floats.bfloat16().t()
    ways: dict[str, Callable[[], Any]] = {
        "fp8": lambda: product(linear, bits, scale),
        "fp8_with_rounding": lambda: product(linear, *rounded(linear, x)),
        "bf16": lambda: torch.matmul(x, plain),
    }
    work = 2.0 * x.shape[0] * linear.weight.numel()
    return {f"{name}_tflops": work / timed(way, seconds) / 1e12 for name, way in ways.items()}


def timed(way: Callable[[], Any], seconds: float) -> float:
    """Median seconds on the GPU, of at least 10 runs and `seconds` in all."""
    cache = torch.empty(CACHE_BYTES, dtype=torch.uint8, device="cuda")
    for _ in range(3):
        way()
    found: list[float] = []
    stop = time.perf_counter() + seconds
    while len(found) < 10 or time.perf_counter() < stop:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        cache.zero_()
        begin.record()
        way()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(found)


def line(linear: Linear, rows: int, seconds: float) -> dict[str, Any]:
    """What is printed of one shape and number of rows."""
    x = activations(linear, rows)
    fast = speeds(linear, x, seconds)
    out, cols = linear.weight.shape
    return {
        "what": LABEL, "device": torch.cuda.get_device_name(), "torch": torch.__version__,
        "cuda": torch.version.cuda, "linear": linear.name, "rows": rows, "out": out, "in": cols,
        "scales": "tensor" if linear.inputs is not None else "rows and tokens",
        **{key: float(f"{one:.4g}") for key, one in errors(linear, x).items()},
        **{key: float(f"{one:.4g}") for key, one in fast.items()},
        "ratio": round(fast["fp8_tflops"] / fast["bf16_tflops"], 3),
        "ratio_with_rounding": round(fast["fp8_with_rounding_tflops"] / fast["bf16_tflops"], 3),
    }  # fmt: skip


def unusable() -> str | None:
    """Why nothing can be measured here."""
    if not torch.cuda.is_available():
        return "no NVIDIA GPU here"
    if torch.cuda.get_device_capability() < LEAST_GPU:
        return f"{torch.cuda.get_device_name()} does not multiply FP8"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=LABEL)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", default="1,16,256,4096", help="tokens at once")
    parser.add_argument("--tile", type=int, default=1, help="repeat each weight along both sides")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each time")
    options = parser.parse_args()
    reason = unusable()
    if reason is not None:
        print(f"nothing measured: {reason}; this is about {LABEL}", file=sys.stderr)
        return 3
    torch.backends.cuda.matmul.allow_tf32 = False  # what it is compared with is float32
    for found in linears(options.folder):
        linear = found.to("cuda", options.tile)
        if any(side % MULTIPLE for side in linear.weight.shape):
            print(f"passed over: {linear.name}, no multiple of {MULTIPLE}", file=sys.stderr)
            continue
        for rows in map(int, options.rows.split(",")):
            print(json.dumps(line(linear, rows, options.seconds)), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
