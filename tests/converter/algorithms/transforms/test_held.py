"""Scales that the output holds: every column is free, and what produces the input stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from qconvert.algorithms import folding
from qconvert.algorithms.slots import Setting
from qconvert.algorithms.transforms import awq, osplus, smoothquant
from qconvert.engine.block import READS, Block

NAMES = ("attn_in", "attn_mid", "ffn_in", "ffn_mid")


def placed(block: Block, names: tuple[str, ...]) -> Block:
    return Block(block.index, block.tensors, {n: torch.ones(block.inputs[n]) for n in names})


def effective(block: Block, role: str) -> torch.Tensor:
    """What a linear does to its input, scale included."""
    return block.weight(role) * block.columns.get(READS[role], torch.ones(()))


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "gpt_neox"])
def test_any_scale_cancels_and_changes_nothing_else(lab: Any, family: str) -> None:
    """Also where nothing could be folded: an MLP without a gate."""
    block = placed(lab.blocks(lab.open(family))[0], ("attn_mid", "ffn_mid"))
    source, random = lab.open(family), np.random.default_rng(0)
    pairs = folding.pairs(source, block)
    assert tuple(pairs) == NAMES
    for name in ("attn_mid", "ffn_mid"):
        pair = pairs[name]
        assert pair.channels == block.inputs[name]
        scale = 8 ** random.uniform(-1, 1, pair.channels)
        found, change = folding.fold(block, pair, scale)
        np.testing.assert_allclose(change.divide, scale, rtol=2**-8)
        np.testing.assert_allclose(found.columns[name] * change.divide, 1, rtol=1e-6)
        for key, before in block.tensors.items():
            if key == (pair.readers[0], "weight"):
                assert not torch.equal(found.tensors[key], before)
                after = effective(found, key[0])
                torch.testing.assert_close(after, before, rtol=1e-6, atol=0)
            else:
                assert torch.equal(found.tensors[key], before)


def test_what_is_held_stays_exact_however_often_it_is_scaled(lab: Any) -> None:
    source = lab.open("llama")
    first = block = placed(lab.blocks(source)[0], ("ffn_mid",))
    random = np.random.default_rng(0)
    for _ in range(3):
        pair = folding.pairs(source, block)["ffn_mid"]
        block, _ = folding.fold(block, pair, 30 ** random.uniform(-1, 1, pair.channels))
        held = block.columns["ffn_mid"]
        assert torch.equal(held, held.half().float())
        assert torch.equal(held, held.bfloat16().float())
    torch.testing.assert_close(effective(block, "ffn_down"), first.weight("ffn_down"))


def test_extreme_scales_stay_within_what_can_be_held() -> None:
    found = folding.exact(np.array([1e-30, 1e30, 1.0, 1.001, 3.14159]))
    assert found.tolist() == [2.0**-14, 2.0**14, 1.0, 1.0, 3.140625]


def test_norms_take_scales_as_before(lab: Any) -> None:
    source = lab.open("llama")
    block = lab.blocks(source)[0]
    plain, held = (folding.pairs(source, one) for one in (block, placed(block, NAMES)))
    assert [one.producer for one in plain.values()] == ["attn_norm", "attn_v", "ffn_norm", "ffn_up"]
    assert [one.producer for one in held.values()] == ["attn_norm", "", "ffn_norm", ""]


@pytest.mark.parametrize("transform", [awq.TRANSFORM, smoothquant.TRANSFORM, osplus.TRANSFORM],
                         ids=lambda one: one.name)  # fmt: skip
def test_transforms_use_them(lab: Any, transform: Any) -> None:
    """Of osplus only what norms make is scaled."""
    source = lab.edited(lab.open("llama"), "attn_v", lab.outlier([3, 77], 20.0), "weight")
    source = lab.edited(source, "ffn_up", lab.outlier([5, 100], 20.0), "weight")
    block = placed(lab.blocks(source)[0], ("attn_mid", "ffn_mid"))
    inputs = lab.seen(source, lab.tokens(4, 64))[0]
    observed = {name: lab.observed(x) for name, x in inputs.items()}
    grids = lab.grids_of(block)
    found, changes = transform.block(source, block, observed, grids, Setting())
    uses = transform.name != "osplus"
    for name, role in (("attn_mid", "attn_o"), ("ffn_mid", "ffn_down")):
        assert (name in changes) == uses
        assert bool((found.columns[name] != 1).any()) == uses
        torch.testing.assert_close(effective(found, role), block.weight(role))
    for role, name in (("attn_v", "attn_in"), ("ffn_up", "ffn_in")):
        by = changes[name].divide if name in changes else 1.0  # of their norm alone
        assert torch.equal(found.weight(role), block.weight(role) * by)
