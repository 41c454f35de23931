"""SmoothQuant against equation 4 of its paper, number by number."""

from __future__ import annotations

from typing import Any

import pytest

from qconvert.algorithms.slots import Setting
from qconvert.algorithms.transforms.smoothquant import SmoothQuant


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.8])
def test_it_is_the_formula(lab: Any, alpha: float) -> None:
    source = lab.open("qwen2")
    block, inputs = lab.blocks(source)[1], lab.seen(source, lab.tokens(2, 32))[1]
    seen = {name: lab.observed(x, held=8) for name, x in inputs.items()}
    transform = SmoothQuant(alpha=alpha)
    changed, changes = transform.block(source, block, seen, lab.grids_of(block), Setting())
    assert set(changes) == {"attn_in", "ffn_in"}  # what stands behind a norm
    for name, roles in (("attn_in", ("attn_q", "attn_k", "attn_v")), ("ffn_in", ("ffn_gate",))):
        tokens = [t for i, t in enumerate(inputs[name].tolist()) if i % 8]
        readers = [row for role in block.readers(name) for row in block.weight(role).tolist()]
        for j in range(0, 256, 5):
            x = max(abs(token[j]) for token in tokens)
            w = max(abs(row[j]) for row in readers)
            s = x**alpha / w ** (1 - alpha)
            assert float(changes[name].divide[j]) == pytest.approx(s, rel=1e-5)
            for role in roles:
                before, after = (float(b.weight(role)[4, j]) for b in (block, changed))
                assert after == pytest.approx(before * s, rel=1e-5)


def test_dead_channels_are_left_alone(lab: Any) -> None:
    source = lab.edited(lab.open("llama"), "ffn_norm", lab.outlier([7], 0.0), "weight")
    block, inputs = lab.blocks(source)[0], lab.seen(source, lab.tokens(2, 32))[0]
    seen = {name: lab.observed(x) for name, x in inputs.items()}
    changed, changes = SmoothQuant().block(source, block, seen, lab.grids_of(block), Setting())
    assert changes["ffn_in"].divide.isfinite().all()
    assert changes["ffn_in"].divide.gt(0).all()
    assert changed.weight("ffn_norm")[7] == 0


def test_nothing_is_folded_where_all_linears_stay_float(lab: Any) -> None:
    source = lab.open("llama")
    block, inputs = lab.blocks(source)[0], lab.seen(source, lab.tokens(2, 32))[0]
    seen = {name: lab.observed(x) for name, x in inputs.items()}
    grids = {"attn_o": lab.grids_of(block)["attn_o"]}
    same, changes = SmoothQuant().block(source, block, seen, grids, Setting())
    assert same is block
    assert changes == {}
