"""Models with weights but no files of them, and MLC's formulas written out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qconvert.formats.mlc.target import TARGET
from qconvert.formats.source import Dtype, SourceTensor
from qconvert.formats.target import Plan, Request
from qconvert.models import FAMILIES


@dataclass(frozen=True)
class Model:
    """`formats.source.Source` with all weights in memory."""

    folder: Path
    config: Mapping[str, Any]
    model_type: str
    tied: bool
    tensors: tuple[SourceTensor, ...]
    values: Mapping[str, NDArray[np.float32]] = field(repr=False)

    def rows(self, tensor: SourceTensor, start: int, stop: int) -> NDArray[np.float32]:
        found = self.values[tensor.name]
        return found if found.ndim == 1 else found[start:stop]


def source_tensors(
    config: Mapping[str, Any], tied: bool, dtype: Dtype = "F16"
) -> Iterator[SourceTensor]:
    for one in FAMILIES[config["model_type"]].expected(config, head=not tied):
        yield SourceTensor(one.full_name, one.role, one.part, one.block, one.shape, dtype)


SIZES: Mapping[str, Any] = {
    "vocab_size": 50, "hidden_size": 80, "intermediate_size": 72, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 20, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512, "tie_word_embeddings": False, "hidden_act": "silu",
    "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"},
}  # fmt: skip
"""80 and 72 inputs: no multiples of 32, one of 40."""


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., Model]:
    """`model("qwen2", **config)`: small and random."""

    def build(model_type: str = "llama", **own: Any) -> Model:
        gemma = {"hidden_act": "gelu_pytorch_tanh"} if model_type.startswith("gemma") else {}
        family = FAMILIES[model_type]
        config = {"model_type": model_type, **family.defaults, **SIZES, **gemma}
        if gemma:
            config["tie_word_embeddings"] = True
        config |= own
        tied = bool(config["tie_word_embeddings"])
        tensors = tuple(source_tensors(config, tied))
        rng = np.random.RandomState(0)
        values = {
            one.name: (0.1 * rng.standard_normal(one.shape)).astype(np.float16).astype(np.float32)
            for one in tensors
        }
        folder = tmp_path / f"random-{model_type}"
        folder.mkdir(exist_ok=True)
        return Model(folder, config, model_type, tied, tensors, values)

    return build


def request(**own: Any) -> Request:
    """`request(type=..., compatible=True)`"""
    chosen = own.pop("compatible", False)
    return Request(own=(("mlc-compatible", "yes"),) if chosen else (), **own)


def write(source: Any, plan: Plan, path: Path, *, step: int = 7) -> Path:
    """Quantize and write `plan`, `step` rows at a time."""
    with TARGET.writer(plan, path) as sink:
        for tensor in plan.tensors:
            if len(tensor.shape) == 1:
                sink.write(tensor, source.rows(tensor.source, 0, 1))
                continue
            for start in range(0, tensor.shape[0], step):
                rows = source.rows(tensor.source, start, start + step)
                sink.write(tensor, rows if tensor.grid is None else tensor.grid.quantize(rows))
    return path


def records(folder: Path) -> dict[str, tuple[dict[str, Any], bytes]]:
    """Record and bytes of everything in a folder, by name."""
    index = json.loads((folder / "tensor-cache.json").read_text())
    found = {}
    for shard in index["records"]:
        data = (folder / shard["dataPath"]).read_bytes()
        for one in shard["records"]:
            at = one["byteOffset"]
            found[one["name"]] = (one, data[at : at + one["nbytes"]])
    return found


STORED = {"uint32": "<u4", "float16": "<f2", "float32": "<f4", "bfloat16": "<u2"}


def array(found: tuple[dict[str, Any], bytes]) -> NDArray[Any]:
    """A record's values as they lie in the file; bfloat16 as uint16."""
    record, data = found
    narrow = record["dtype"] == "float32" and record["format"] == "f32-to-bf16"
    return np.frombuffer(data, "<u2" if narrow else STORED[record["dtype"]]).reshape(
        record["shape"]
    )
