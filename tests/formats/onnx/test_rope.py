"""Tables of cosines and sines against transformers' own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qconvert.formats.onnx.architectures import ARCHITECTURES
from qconvert.formats.onnx.rope import read_ropes
from qconvert.formats.settings import Settings

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1 + at / 10 for at in range(32)],
    "long_factor": [2 + at / 10 for at in range(32)],
}
KINDS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 500000.0},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512, "rope_theta": 500000.0,
    },
    "yarn": YARN,
    "yarn, not truncated": {**YARN, "truncate": False, "beta_fast": 16, "beta_slow": 2},
    "yarn, both scales": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.7},
    "yarn, its own scale": {**YARN, "attention_factor": 1.5},
    "longrope": {**LONG, "original_max_position_embeddings": 4096},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_those_of_transformers(kind: str) -> None:
    import torch
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rope = {"rope_theta": 10000.0, **KINDS[kind]}
    fields = {"hidden_size": 256, "num_attention_heads": 4, "max_position_embeddings": 4096}
    theirs = LlamaRotaryEmbedding(LlamaConfig(**fields, rope_parameters=dict(rope)))
    settings = Settings({**fields, "rope_parameters": rope}, ARCHITECTURES["llama"].defaults)
    ours, _ = read_ropes(settings, ARCHITECTURES["llama"], 64)
    assert not settings.reasons
    positions = torch.arange(4096)[None]
    cos, sin = theirs(torch.zeros(1, dtype=torch.float32), positions)
    tables = ours.tables(0, 4096)
    for mine, other in zip(tables, (cos, sin), strict=True):
        # half a unit in the last place of a frequency, at position 4095
        assert np.abs(mine - other[0, :, :32].numpy()).max() < 6e-4
        assert np.abs(mine[:64] - other[0, :64, :32].numpy()).max() < 1e-5


def test_pieces_of_a_table_are_the_table() -> None:
    settings = Settings({"max_position_embeddings": 64}, ARCHITECTURES["llama"].defaults)
    rope, _ = read_ropes(settings, ARCHITECTURES["llama"], 32)
    whole, piece = rope.tables(0, 64), rope.tables(20, 40)
    assert all(np.array_equal(one[20:40], other) for one, other in zip(whole, piece, strict=True))


def test_gemma_has_two() -> None:
    settings = Settings({}, ARCHITECTURES["gemma3_text"].defaults)
    full, local = read_ropes(settings, ARCHITECTURES["gemma3_text"], 64)
    assert full.frequencies[1] < local.frequencies[1]


def test_longrope_holds_for_short_texts() -> None:
    fields = {"max_position_embeddings": 4096, "rope_parameters": {
        **LONG, "original_max_position_embeddings": 1024, "rope_theta": 10000.0}}  # fmt: skip
    rope, _ = read_ropes(Settings(fields, {}), ARCHITECTURES["phi3"], 64)
    assert rope.limit == 1024
