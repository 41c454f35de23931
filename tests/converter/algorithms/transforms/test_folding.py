"""Where scales can hide, family by family."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qconvert.algorithms import folding

OPTIONS: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"head_dim": 32},
    "phi3": {"num_key_value_heads": 1},
}
GATED = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma3_text", "phi3")
NAMES = ("attn_in", "attn_mid", "ffn_in", "ffn_mid")


def logits(lab: Any, source: Any) -> np.ndarray:
    found: np.ndarray = lab.reference(source).logits(lab.tokens(1, 24, seed=2)[0])
    return found


@pytest.mark.parametrize("family", [*GATED, "gpt_neox", "gpt2"])
def test_any_scale_of_any_pair_cancels(lab: Any, family: str) -> None:
    """Random scales between 1/4 and 4, every pair at once: a wrong row or head would show."""
    source = lab.open(family, **OPTIONS.get(family, {}))
    random, done = np.random.default_rng(0), []
    for block in lab.blocks(source):
        known = folding.pairs(source, block)
        assert tuple(known) == NAMES[: 4 if family in GATED else 3]
        assert folding.unfolded(source, block) == NAMES[len(known) :]
        for pair in known.values():
            scale = 4 ** random.uniform(-1, 1, pair.channels)
            before = {role: block.weight(role) for role in pair.readers}
            block, change = folding.fold(block, pair, scale)
            assert change.divide.tolist() == pair.per_column(scale).tolist()
            assert change.shift is None
            for role, weight in before.items():
                assert block.weight(role).equal(weight * change.divide)
        done.append(block)
    expected, found = logits(lab, source), logits(lab, lab.with_blocks(source, done))
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("family", ["gpt_neox", "gpt2"])
def test_any_shift_cancels(lab: Any, family: str) -> None:
    source = lab.open(family)
    random, done = np.random.default_rng(0), []
    for block in lab.blocks(source):
        for pair in folding.pairs(source, block).values():
            assert folding.can_shift(block, pair) == pair.is_norm
            if pair.is_norm:
                scale, shift = random.uniform(0.5, 2, 256), random.normal(0, 3, 256)
                block, change = folding.fold(block, pair, scale, shift)
                assert change.shift is not None
        done.append(block)
    expected, found = logits(lab, source), logits(lab, lab.with_blocks(source, done))
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_a_shift_needs_biases_on_both_sides(lab: Any) -> None:
    for family in ("llama", "qwen2"):  # qwen2: biases in q, k, v, none in the norm
        source = lab.open(family)
        block = lab.blocks(source)[0]
        pairs = folding.pairs(source, block).values()
        assert not any(folding.can_shift(block, pair) for pair in pairs)


def test_shared_channels() -> None:
    """Two heads of k and v with three channels, four heads of q."""
    sizes = folding.Sizes(q=12, kv=6, head=3, ffn=8, by_head=False)
    assert folding.shared_values(sizes).tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5]
    assert folding.joined_value_rows(sizes).tolist() == [18, 19, 20, 21, 22, 23]
    by_head = folding.Sizes(q=6, kv=6, head=3, ffn=8, by_head=True)
    assert folding.joined_value_rows(by_head).tolist() == [6, 7, 8, 15, 16, 17]
