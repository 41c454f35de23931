"""Second moments told from weights: against a simulation, and where there is nothing to tell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qconvert.checkpoint import Checkpoint, open_checkpoint
from qconvert.formats.source import SourceTensor
from qconvert.importance import importance

Tiny = Callable[..., Path]


def _tensor(source: Checkpoint, role: str, part: str = "weight") -> SourceTensor:
    return next(t for t in source.tensors if (t.role, t.part, t.block) == (role, part, 1))


def _outputs(source: Checkpoint, role: str, norm: str, offset: float, x: np.ndarray) -> np.ndarray:
    """A linear of block 1 on random vectors of mean square 1, behind its norm."""
    linear = _tensor(source, role)
    gains = source.rows(_tensor(source, norm), 0, 1) + offset
    return (x * gains) @ source.rows(linear, 0, linear.shape[0]).T


@pytest.mark.parametrize(
    ("family", "offset"), [("llama", 0.0), ("qwen3", 0.0), ("gemma3_text", 1.0)]
)
def test_moments_are_those_of_a_simulation(tiny_model: Tiny, family: str, offset: float) -> None:
    source = open_checkpoint(tiny_model(family))
    hidden = source.config["hidden_size"]
    x = np.random.default_rng(0).standard_normal((20_000, hidden)).astype(np.float32)

    values = np.square(_outputs(source, "attn_v", "attn_norm", offset, x)).mean(0)
    found = importance(source, _tensor(source, "attn_o"))
    assert found is not None
    assert found.shape == (_tensor(source, "attn_o").shape[1],)
    heads, kv_heads = source.config["num_attention_heads"], source.config["num_key_value_heads"]
    assert heads > kv_heads
    size = len(values) // kv_heads
    for head in range(heads):
        want = values[head * kv_heads // heads * size :][:size]
        np.testing.assert_allclose(found[head * size :][:size], want, rtol=0.08)

    gate = np.square(_outputs(source, "ffn_gate", "ffn_norm", offset, x)).mean(0)
    up = np.square(_outputs(source, "ffn_up", "ffn_norm", offset, x)).mean(0)
    found = importance(source, _tensor(source, "ffn_down"))
    assert found is not None
    np.testing.assert_allclose(found, gate * up, rtol=0.15)


def test_a_bias_counts(tiny_model: Tiny) -> None:
    source = open_checkpoint(tiny_model("qwen2"))
    bias = source.rows(_tensor(source, "attn_v", "bias"), 0, 1)
    assert np.abs(bias).max() > 0
    found = importance(source, _tensor(source, "attn_o"))
    assert found is not None
    assert (found[: len(bias)] >= np.square(bias[: len(found)])).all()


def test_what_nothing_is_told_of(tiny_model: Tiny) -> None:
    source = open_checkpoint(tiny_model("llama"))
    for role in ("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up"):
        assert importance(source, _tensor(source, role)) is None
    embedding = next(t for t in source.tensors if t.role == "embedding")
    assert importance(source, embedding) is None
    for family in ("gpt2", "gpt_neox", "phi3"):  # fused or without a gate
        source = open_checkpoint(tiny_model(family))
        assert importance(source, _tensor(source, "ffn_down")) is None
