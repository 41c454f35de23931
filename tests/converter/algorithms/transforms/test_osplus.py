"""Outlier Suppression+ against a literal search on stored activations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from qconvert.algorithms import trial
from qconvert.algorithms.slots import Setting
from qconvert.algorithms.transforms import osplus
from qconvert.formats.gguf.grids import GRIDS

GRID = GRIDS["Q8_0"]
QKV = "attn_qkv"


def loud(lab: Any, family: str) -> tuple[Any, Any, torch.Tensor]:
    source = lab.open(family)
    source = lab.edited(source, "attn_norm", lab.outlier([3, 77], 20.0), "weight")
    source = lab.edited(source, "attn_norm", lab.outlier([9, 120], 90.0), "bias")
    block, inputs = lab.blocks(source)[0], lab.seen(source, lab.tokens(4, 64))[0]
    return source, block, inputs["attn_in"]


def literal_loss(
    w: torch.Tensor, x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor
) -> float:
    """|Q(W s) Q((x - z) / s) - W (x - z)|^2, mean over tokens, activations rounded one by one to
    256 values between the extremes of all."""
    moved = (x - shift) / scale
    low, high = min(0.0, float(moved.min())), max(0.0, float(moved.max()))
    step = (high - low) / 255
    rounded = torch.round((moved - low) / step) * step + low
    power = moved.square().mean(0)
    scaled = (w * scale).numpy()
    found = GRID.decode(GRID.quantize(scaled, (power / power.mean()).numpy()))
    wanted = (x - shift).double() @ w.double().T
    output = rounded.double() @ torch.from_numpy(found).double().T
    return float((output - wanted).square().sum()) / len(x)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_it_finds_what_a_literal_search_finds(lab: Any, family: str) -> None:
    source, block, x = loud(lab, family)
    seen = lab.observed(x, held=len(x))  # all rows but one
    seen, x = replace(seen, held=seen.fit), x[1:]
    grids = {QKV: GRID}
    _, changes = osplus.TRANSFORM.block(source, block, {"attn_in": seen}, grids, Setting(effort=9))
    change = changes["attn_in"]
    shift = torch.stack([(c.max() + c.min()) / 2 for c in x.T])
    torch.testing.assert_close(change.shift, shift)
    largest = (x - shift).abs().amax(0)
    losses = {}
    for threshold in np.geomspace(float(largest.max()), float(largest.min()), 40):
        scale = torch.clamp(largest / threshold, min=1.0)
        losses[threshold] = literal_loss(block.weight(QKV), x, scale, shift)
    ours = literal_loss(block.weight(QKV), x, change.divide, shift)
    assert ours <= 1.02 * min(losses.values())
    used = float(largest.max() / change.divide.max())
    nearest = min(losses, key=lambda threshold: abs(np.log(threshold / used)))
    torch.testing.assert_close(change.divide, torch.clamp(largest / nearest, min=1.0).float())
    plain = literal_loss(block.weight(QKV), x, torch.ones(256), torch.zeros(256))
    assert 5 * ours < plain


def test_the_model_of_rounding_noise_is_right(lab: Any) -> None:
    """The cost from moments is that of activations rounded one by one, within 5 %."""
    _, block, x = loud(lab, "gpt2")
    known = lab.moments(x)
    readers = trial.linears(block, (QKV,), {QKV: GRID})
    for factor in (1.0, 0.3, 0.05):
        scale = torch.clamp(known.largest / (factor * known.largest.max()), min=1.0)
        cost = osplus.cost(readers, scale.numpy(), known, known, 1, torch.float64)
        literal = literal_loss(block.weight(QKV), x, scale, torch.zeros(256))
        assert cost == pytest.approx(literal, rel=0.05)


def test_without_biases_only_the_scale_is_searched(lab: Any) -> None:
    source = lab.edited(lab.open("llama"), "attn_norm", lab.outlier([3], 30.0), "weight")
    _, changes = lab.transformed(osplus.TRANSFORM, source, "Q8_0")
    assert changes[0]["attn_in"].shift is None
    assert changes[0]["attn_in"].divide[3] > 2
    assert len(osplus.TRANSFORM.notes(source)) == 2
    assert osplus.TRANSFORM.notes(lab.open("gpt2")) == ()
    unbiased = lab.open("gpt_neox", attention_bias=False)
    assert ["attn_norm" in note for note in osplus.TRANSFORM.notes(unbiased)] == [True]
    # Biases of q, k and v alone are not enough: a norm without one cannot shift.
    assert len(osplus.TRANSFORM.notes(lab.open("qwen2"))) == 2


def test_a_shift_is_made_where_biases_are(lab: Any) -> None:
    source = lab.open("gpt_neox", attention_bias=False)
    for norm in ("attn_norm", "ffn_norm"):
        source = lab.edited(source, norm, lab.outlier([3, 77], 20.0), "weight")
    _, changes = lab.transformed(osplus.TRANSFORM, source)
    assert changes[0]["attn_in"].shift is None
    assert changes[0]["ffn_in"].shift is not None
