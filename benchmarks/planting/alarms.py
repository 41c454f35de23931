"""Good conversions of many kinds: what a check finds in one of them is a false alarm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planting.goods import MAIN
from qconvert.asked import Asked
from qconvert.formats.refusal import Refused
from qconvert.formats.target import Request
from qconvert.pipeline import convert

SMALL = {"calib_rows": 6, "calib_length": 64, "compute": "float32"}
KINDS: Mapping[str, tuple[str, ...]] = {
    "gguf": ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q4_1", "IQ4_NL", "Q3_K_M", "Q2_K", "F16"),
    "vllm": ("w4a16-g64", "w4a16-g32-asym", "w4a16-channel", "w8a16-g64", "w8a8", "w8a8-static",
             "fp8-channel", "fp8-tensor", "nvfp4", "mxfp4"),
    "onnx": ("int4", "int8", "int4-g64-asym", "int3", "int2", "float32"),
    "mlc": ("q4f16_1", "q4f16_0", "q4f16_2", "q4bf16_1", "q3f16_1", "q4f32_1"),
}  # fmt: skip
USUAL = {"gguf": "Q4_K_M", "vllm": "w4a16-g64", "onnx": "int4", "mlc": "q4f16_1"}
FAMILIES = ("untied", "qwen2", "qwen3", "gemma3", "llama3")
METHODS = ("best", "gptq", "awq", "hqq", "quarot")


@dataclass(frozen=True, slots=True)
class Conversion:
    to: str
    type: str
    method: str
    model: str
    request: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        told = "".join(f",{value}" for _, value in self.request)
        return f"{self.to}/{self.type}{told}:{self.method}@{self.model}"


def conversions() -> list[Conversion]:
    """Types on the main model, methods and families in the usual types."""
    types = [Conversion(to, kind, "rtn", MAIN) for to, kinds in KINDS.items() for kind in kinds]
    older = [
        Conversion("vllm", "w4a16-g64", "rtn", MAIN, (("container", "gptq"),)),
        Conversion("vllm", "w4a16-g64-asym", "rtn", MAIN, (("container", "awq"),)),
        Conversion("vllm", "w8a8", "smoothquant", "untied"),
        Conversion("vllm", "w8a8-static", "smoothquant+best", "untied"),
    ]
    families = [Conversion(to, kind, "rtn", model)
                for to, kind in USUAL.items() for model in FAMILIES]  # fmt: skip
    methods = [Conversion(to, kind, method, "untied")
               for to, kind in USUAL.items() for method in METHODS]  # fmt: skip
    return [*types, *older, *families, *methods]


def convert_good(wanted: Conversion, model: Path, folder: Path) -> Path | None:
    """The output, made once; None where the target has no place for it."""
    name = wanted.name.replace("/", "-").replace(":", "-")
    out = folder / (f"{name}.gguf" if wanted.to == "gguf" else name)
    if out.exists():
        return out
    folder.mkdir(parents=True, exist_ok=True)
    try:
        done = convert(
            model, wanted.to, type=wanted.type, out=out, threads=1,
            request=Request(**dict(wanted.request)), asked=Asked(method=wanted.method, **SMALL),
        )  # fmt: skip
    except Refused:
        return None
    return done.folder or done.files[0]
