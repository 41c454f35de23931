"""Good outputs: what each is made of, by the product itself as a user would ask for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planting.files import Files, link, linked
from planting.gguf import GgufFile
from planting.mlc import MlcFolder
from planting.onnx import OnnxFolder
from planting.output import Output, facts
from planting.serving import ServingFolder
from qconvert.asked import Asked
from qconvert.formats.target import Request
from qconvert.pipeline import convert

MAIN = "main"
PLANTERS: Mapping[str, Any] = {
    "gguf": GgufFile, "vllm": ServingFolder, "onnx": OnnxFolder, "mlc": MlcFolder,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
TINY: Mapping[str, tuple[str, dict[str, Any]]] = {
    "untied": ("llama", {}),
    "all-heads": ("llama", {"num_key_value_heads": 4}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "gemma3": ("gemma3_text", {}),
    "llama3": ("llama", {"rope_parameters": LLAMA3}),
}
"""Models that the main one cannot stand for: (family, settings) of the tests' tiny models."""
SETTINGS = {"temperature": 0.6, "top_p": 0.92, "do_sample": True, "repetition_penalty": 1.1}


@dataclass(frozen=True, slots=True)
class Good:
    """A way to ask for an output."""

    to: str
    type: str
    request: Mapping[str, Any] | None = None
    split: bool = False  # in several files

    @property
    def slow(self) -> bool:
        """Statistics of activations are looked at."""
        return any(word in self.type for word in ("static", "tensor")) or bool(
            self.request and self.request.get("kv")
        )


GOODS: Mapping[str, Good] = {
    "gguf/Q4_0": Good("gguf", "Q4_0"),
    "gguf/Q8_0": Good("gguf", "Q8_0"),
    "gguf/Q4_K_M": Good("gguf", "Q4_K_M"),
    "gguf/BF16": Good("gguf", "BF16"),
    "gguf/split": Good("gguf", "Q8_0", split=True),
    "vllm/w4a16": Good("vllm", "w4a16-g64"),
    "vllm/asym": Good("vllm", "w4a16-g64-asym"),
    "vllm/gptq": Good("vllm", "w4a16-g64", {"container": "gptq"}),
    "vllm/awq": Good("vllm", "w4a16-g64-asym", {"container": "awq"}),
    "vllm/w8a8": Good("vllm", "w8a8"),
    "vllm/w8a8-static": Good("vllm", "w8a8-static"),
    "vllm/fp8": Good("vllm", "fp8-channel"),
    "vllm/fp8-kv": Good("vllm", "fp8-channel", {"kv": "fp8"}),
    "vllm/split": Good("vllm", "w4a16-g64", split=True),
    "onnx/int4": Good("onnx", "int4"),
    "onnx/asym": Good("onnx", "int4-g64-asym"),
    "mlc/q4f16_1": Good("mlc", "q4f16_1"),
    "mlc/q4f16_0": Good("mlc", "q4f16_0"),
}


FOUR = ("gguf/Q4_0", "vllm/w4a16", "onnx/int4", "mlc/q4f16_1")
EIGHT = ("gguf/Q8_0", "vllm/w8a8")
ZEROS = ("vllm/asym", "vllm/awq", "onnx/asym")
CONFIGURED = ("gguf/Q4_0", "vllm/w4a16", "mlc/q4f16_1")  # with settings apart from a graph


def at(model: str, *names: str) -> tuple[str, ...]:
    """The same outputs, by default `FOUR`, of one of the tiny models."""
    return tuple(f"{name}@{model}" for name in names or FOUR)


def split_name(name: str) -> tuple[str, str]:
    """ "gguf/Q8_0@qwen2" -> the good output's name, and its model's."""
    kind, _, model = name.partition("@")
    return kind, model or MAIN


def build(name: str, model: Path, place: Path, **asked: Any) -> Path:
    """The output called `name`, made of the folder `model` in the new folder `place`, unless it is
    there already; the path to check."""
    good = GOODS[split_name(name)[0]]
    done = place / ".path"
    if not done.exists():
        place.mkdir(parents=True, exist_ok=True)
        own: dict[str, Any] = {"method": "rtn", "calib_rows": 4, "calib_length": 128, **asked}
        out = place / ("model.gguf" if good.to == "gguf" else "folder")
        size = sum(one.stat().st_size for one in model.glob("*.safetensors"))
        found = convert(
            model, good.to, type=good.type, out=out, threads=1, force=True,
            split_bytes=max(size // 6, 150_000) if good.split else None,
            request=Request(**(good.request or {})), asked=Asked(**own),
        )  # fmt: skip
        path = found.folder or found.files[0]
        done.write_text(str(path.relative_to(place)), "utf-8")
    return place / done.read_text("utf-8")


def copied(good: Path, place: Path) -> Files:
    """A copy of links to damage; the note of `build` does not come along."""
    files = linked(good, place)
    (place / ".path").unlink(missing_ok=True)
    return files


def opened(name: str, files: Files, model: Path) -> Output:
    planter = PLANTERS[GOODS[split_name(name)[0]].to]
    output: Output = planter(files, facts(model))
    return output


def main_model(model: Path, place: Path) -> Path:
    """The model, with generation settings that can get lost: links to its files."""
    if not place.exists():
        place.mkdir(parents=True)
        for one in sorted(model.iterdir()):
            if one.is_file():
                link(one, place / one.name)
        file = place / "generation_config.json"
        told = json.loads(file.read_text("utf-8")) if file.exists() else {}
        file.unlink(missing_ok=True)
        file.write_text(json.dumps({**told, **SETTINGS}, indent=2) + "\n", "utf-8")
    return place
