"""No transform changes what the float model computes, in any family."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qconvert.algorithms.slots import Transform
from qconvert.algorithms.transforms import awq, osplus, quarot, smoothquant

FAMILIES = (
    "llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma3_text", "phi3", "gpt_neox", "gpt2",
)  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "mistral": {"head_dim": 32},  # q is narrower than the stream
    "qwen3": {"attention_bias": True},
    "phi3": {"hidden_size": 192, "num_attention_heads": 3, "num_key_value_heads": 3},
}
BY_BLOCK: tuple[Transform, ...] = (awq.TRANSFORM, smoothquant.TRANSFORM, osplus.TRANSFORM)


def with_outliers(lab: Any, family: str) -> Any:
    """The model with a few loud channels in each norm, off their mean where there is a bias."""
    source = lab.open(family, **OPTIONS.get(family, {}))
    for role in ("attn_norm", "ffn_norm"):
        source = lab.edited(source, role, lab.outlier([3, 77], 10.0), "weight")
        source = lab.edited(source, role, lab.outlier([5, 100], 20.0), "bias")
    return source


def difference(lab: Any, one: Any, other: Any) -> float:
    """Largest difference of logits, relative to the largest logit."""
    row = lab.tokens(1, 40, seed=9)[0]
    expected, found = (lab.reference(source).logits(row) for source in (one, other))
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("transform", BY_BLOCK, ids=lambda t: t.name)
def test_scales_and_shifts_cancel(lab: Any, family: str, transform: Transform) -> None:
    source = with_outliers(lab, family)
    assert transform.problems(source) == ()
    changed, changes = lab.transformed(transform, source)
    for change in changes:
        assert change, "nothing was folded, so nothing was shown"
        assert all((one.divide != 1).any() for one in change.values())
    assert difference(lab, source, changed) < 1e-4


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "smollm3", "phi3"])
def test_rotations_cancel(lab: Any, family: str) -> None:
    source = with_outliers(lab, family)
    assert quarot.TRANSFORM.problems(source) == []
    changed, changes = lab.transformed(quarot.TRANSFORM, source)
    assert changes == [{}, {}]
    assert difference(lab, source, changed) < 1e-4
    before, after = (lab.blocks(one)[1].weight("attn_o") for one in (source, changed))
    assert (before - after).abs().max() > 0.1 * before.abs().max()


def test_transforms_follow_one_another(lab: Any) -> None:
    source = with_outliers(lab, "llama")
    changed = source
    for transform in (quarot.TRANSFORM, smoothquant.TRANSFORM, awq.TRANSFORM):
        changed, _ = lab.transformed(transform, changed)
    assert difference(lab, source, changed) < 1e-4
