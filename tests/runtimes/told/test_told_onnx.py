"""What is planted into genai_config.json and the graph of a folder is found, and named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

CONFIG = "genai_config.json"
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "heads": ({"model.decoder.num_attention_heads": 8}, "num_attention_heads"),
    "kv heads": ({"model.decoder.num_key_value_heads": 4}, "num_key_value_heads"),
    "head size": ({"model.decoder.head_size": 32}, "head_dim"),
    "hidden": ({"model.decoder.hidden_size": 512}, "hidden_size"),
    "context": ({"model.context_length": 4096}, "max_position_embeddings"),
    "shorter context": ({"model.context_length": 256}, "max_position_embeddings"),
    "bos": ({"model.bos_token_id": 9}, "bos_token_id"),
    "bos lost": ({"model.bos_token_id": None}, "bos_token_id"),
    "eos": ({"model.eos_token_id": 3}, "eos_token_id"),
    "one of two ends": ({"model.eos_token_id": 2}, "eos_token_id"),
    "end in plain text": ({"model.eos_token_id": [2, 4, 300]}, "eos_token_id"),
    "pad": ({"model.pad_token_id": 5}, "pad_token_id"),
    "temperature": ({"search.temperature": 1.0}, "temperature"),
    "greedy": ({"search.do_sample": False}, "do_sample"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_the_configuration(fault: str, bench: Any) -> None:
    fields, culprit = FAULTS[fault]
    path = bench.copy("onnx")
    bench.edit(path / CONFIG, fields)
    assert bench.culprits(path, "onnx")[0] == culprit


def graph_of(path: Path) -> onnx.ModelProto:
    return onnx.load(path / "model.onnx", load_external_data=False)


def test_the_epsilon_of_one_norm(bench: Any) -> None:
    path = bench.copy("onnx")
    model = graph_of(path)
    norm = next(one for one in model.graph.node if "LayerNorm" in one.name)
    next(one for one in norm.attribute if one.name == "epsilon").f = 1e-5
    onnx.save(model, path / "model.onnx")
    (wrong,) = bench.found(path, "onnx")
    assert wrong.culprit == "rms_norm_eps"
    assert "3e-06" in wrong.problem


@pytest.mark.parametrize(
    ("name", "field", "value", "culprit"),
    [
        ("softcap", "f", 50.0, "attn_logit_softcapping"),
        ("rotary_interleaved", "i", 1, "rope_parameters"),
    ],
)
def test_attention_of_another_kind(
    name: str, field: str, value: float, culprit: str, bench: Any
) -> None:
    path = bench.copy("onnx")
    model = graph_of(path)
    heads = [one for one in model.graph.node if one.op_type == "GroupQueryAttention"]
    setattr(next(one for one in heads[1].attribute if one.name == name), field, value)
    onnx.save(model, path / "model.onnx")
    assert bench.culprits(path, "onnx")[0] == culprit


def test_a_window_that_the_model_has_not(bench: Any) -> None:
    path = bench.copy("onnx")
    model = graph_of(path)
    heads = next(one for one in model.graph.node if one.op_type == "GroupQueryAttention")
    next(one for one in heads.attribute if one.name == "local_window_size").i = 64
    onnx.save(model, path / "model.onnx")
    assert bench.culprits(path, "onnx")[0] == "sliding_window"


def tables(path: Path) -> dict[str, tuple[int, tuple[int, int]]]:
    """Name of a table -> where it begins in the data file, and its shape."""
    found = {}
    for one in graph_of(path).graph.initializer:
        if one.name.startswith(("cos_cache", "sin_cache")):
            place = {pair.key: pair.value for pair in one.external_data}
            found[one.name] = int(place["offset"]), (one.dims[0], one.dims[1])
    return found


def put(path: Path, frequencies: Any, first: int = 0) -> None:
    """Cosines and sines of other frequencies, from a row on."""
    data = np.memmap(path / "model.onnx.data", np.uint8, "r+")
    for name, (offset, (rows, pairs)) in tables(path).items():
        view = data[offset : offset + 4 * rows * pairs].view("<f4").reshape(rows, pairs)
        angles = np.arange(first, rows)[:, None] * frequencies[None, :]
        view[first:] = np.cos(angles) if name.startswith("cos") else np.sin(angles)
    data.flush()


def powers(base: float) -> Any:
    return base ** -(np.arange(0, 64, 2) / 64)


def test_tables_of_another_base(bench: Any) -> None:
    path = bench.copy("onnx")
    put(path, powers(10000.0))
    (wrong,) = bench.found(path, "onnx")
    assert wrong.culprit == "rope_theta"
    assert "10000 in the file, and 500000 in the model" in wrong.problem


def test_tables_without_the_scaling(bench: Any) -> None:
    path = bench.copy("onnx")
    put(path, powers(500000.0))
    assert bench.culprits(path, "onnx") == ["rope_parameters"]


def test_tables_that_go_on_otherwise(bench: Any) -> None:
    path = bench.copy("onnx")
    put(path, powers(10000.0), first=300)
    (wrong,) = bench.found(path, "onnx")
    assert wrong.culprit == "rope_theta"
    assert "position" in wrong.problem
