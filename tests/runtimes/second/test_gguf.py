"""GGUF by the gguf package's own names and dequantization."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

from qconvert.formats.gguf.target import TARGET
from qconvert.runtimes.second.gguf import _Skipping
from qconvert.runtimes.second.reading import second_weights

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True}, "mistral": {}, "smollm3": {}, "qwen2": {}, "qwen3": {},
    "gemma3_text": {}, "phi3": {}, "gpt2": {}, "gpt_neox": {"tie_word_embeddings": True},
}  # fmt: skip
Output = Callable[..., Any]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_read_as_we_read_it(family: str, output: Output) -> None:
    output("gguf", "F16", family, **FAMILIES[family]).check()


@pytest.mark.parametrize("type", [name for name, _ in TARGET.types])
def test_every_type_is_read_as_we_read_it(type: str, output: Output) -> None:
    output("gguf", type).check()


def test_a_split_file_is_read_from_any_of_its_parts(output: Output) -> None:
    made = output("gguf", "Q8_0", split=500_000)
    parts = sorted(made.path.parent.glob("*.gguf"))
    assert len(parts) > 2
    made.check()
    for path in (parts[0], parts[-1]):
        assert len(second_weights("gguf", path, made.source) or ()) == len(made.ours())


def test_stepping_over_arrays_changes_no_tensor(output: Output) -> None:
    path = output("gguf", "Q4_0").path
    theirs, ours = GGUFReader(path), _Skipping(path)
    assert [t.name for t in ours.tensors] == [t.name for t in theirs.tensors]
    assert [t.data_offset for t in ours.tensors] == [t.data_offset for t in theirs.tensors]
    assert "tokenizer.ggml.tokens" in ours.fields


def written(path: Path, arch: str, **tensors: Any) -> Path:
    writer = GGUFWriter(path, arch)
    for name, values in tensors.items():
        writer.add_tensor(name, np.asarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def read(path: Path, name: str, source: Callable[..., Any], **config: Any) -> Any:
    found = second_weights("gguf", path, source(name, **config))
    assert found is not None
    return found[name].tolist()


@pytest.fixture
def source() -> Any:
    from types import SimpleNamespace

    def build(name: str, model_type: str, **config: Any) -> Any:
        tensor = SimpleNamespace(name=name, block=0)
        return SimpleNamespace(tensors=(tensor,), model_type=model_type, config=config, tied=False)

    return build


def test_rotated_rows_go_back_to_their_halves(tmp_path: Path, source: Any) -> None:
    """One head of four: rows 0, 1 of the first half, 2, 3 of the second, written 0, 2, 1, 3."""
    path = written(tmp_path / "a.gguf", "llama", **{"blk.0.attn_q.weight": [[0], [2], [1], [3]]})
    name = "model.layers.0.self_attn.q_proj.weight"
    of_llama = {"model_type": "llama", "num_attention_heads": 1}
    assert read(path, name, source, **of_llama) == [[0], [1], [2], [3]]
    assert read(path, name, source, model_type="qwen2") == [[0], [2], [1], [3]]


def test_keys_have_as_many_heads_as_fit(tmp_path: Path, source: Any) -> None:
    """Two heads of four of keys beside four of queries, though config.json does not say so."""
    rows = [[0], [2], [1], [3], [4], [6], [5], [7]]
    path = written(tmp_path / "a.gguf", "llama", **{"blk.0.attn_k.weight": rows})
    config = {"model_type": "mistral", "num_attention_heads": 4, "hidden_size": 16}
    name = "model.layers.0.self_attn.k_proj.weight"
    assert read(path, name, source, **config) == [[row] for row in range(8)]


def test_joined_rows_of_gpt_neox_go_back_to_their_heads(tmp_path: Path, source: Any) -> None:
    """Two heads of one row: q0 q1 k0 k1 v0 v1 in the file, q0 k0 v0 q1 k1 v1 in the model."""
    path = written(tmp_path / "a.gguf", "gptneox",
                   **{"blk.0.attn_qkv.weight": [[0], [3], [1], [4], [2], [5]]})  # fmt: skip
    name = "gpt_neox.layers.0.attention.query_key_value.weight"
    config = {"model_type": "gpt_neox", "num_attention_heads": 2}
    assert read(path, name, source, **config) == [[row] for row in range(6)]


def test_norms_of_gemma_lose_their_one(tmp_path: Path, source: Any) -> None:
    path = written(tmp_path / "a.gguf", "gemma3", **{"blk.0.attn_norm.weight": [1.5, 0.75]})
    name = "model.layers.0.input_layernorm.weight"
    assert read(path, name, source, model_type="gemma3_text") == [0.5, -0.25]


def test_matrices_of_gpt2_are_turned(tmp_path: Path, source: Any) -> None:
    path = written(tmp_path / "a.gguf", "gpt2", **{"blk.0.ffn_up.weight": [[1, 2], [3, 4]]})
    assert read(path, "h.0.mlp.c_fc.weight", source, model_type="gpt2") == [[1, 3], [2, 4]]


def test_what_the_file_lacks_is_left_out(tmp_path: Path, source: Any) -> None:
    path = written(tmp_path / "a.gguf", "llama", **{"output_norm.weight": [1.0]})
    found = second_weights("gguf", path, source("model.embed_tokens.weight", "llama"))
    assert found is not None
    assert len(found) == 0
