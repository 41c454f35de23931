"""AWQ against its paper, and against rounding without it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from qconvert.algorithms import trial
from qconvert.algorithms.folding import pairs
from qconvert.algorithms.slots import Setting
from qconvert.algorithms.transforms import awq
from qconvert.engine.block import READS
from qconvert.formats.gguf.grids import GRIDS
from qconvert.formats.minifloat import GRIDS as FLOATS


def loud(lab: Any) -> Any:
    source = lab.open("llama")
    for role in ("attn_norm", "ffn_norm"):
        source = lab.edited(source, role, lab.outlier([3, 77, 130, 201], 30.0), "weight")
    return source


def first_block(lab: Any, source: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    return lab.blocks(source)[0], lab.seen(source, lab.tokens(4, 64))[0]


def literally(block: Any, roles: tuple[str, ...], x: torch.Tensor, grid: Any) -> np.ndarray:
    """The scale of the paper's search, token by token: s = mean|x|^alpha (and the variant that
    divides by the weights), the one whose rounded layer is nearest to the float layer."""
    mean = x.abs().double().mean(0).numpy()
    stacked = np.concatenate([block.weight(role).numpy() for role in roles]).astype(float)
    parts = np.abs(stacked).reshape(len(stacked), -1, 32)
    magnitude = (parts / parts.max(2, keepdims=True)).reshape(stacked.shape).mean(0)
    tried = [np.ones(len(mean))]
    tried += [mean ** (step / 20) for step in range(1, 21)]
    tried += [mean ** (i / 20) / (magnitude ** (1 - i / 20) + 1e-4) for i in range(20)]
    best, least = tried[0], np.inf
    for scale in tried:
        scale = scale / np.sqrt(scale.max() * scale.min())
        error = 0.0
        for role in roles:
            w = block.weight(role).numpy()
            power = (x.double().numpy() / scale) ** 2
            weight = (power.mean(0) / power.mean()).astype(np.float32)
            scaled = (w * scale.astype(np.float32)).astype(np.float32)
            found = grid.decode(grid.quantize(scaled, weight)) / scale
            for token in x.double().numpy():
                error += float(np.square((found - w) @ token).sum())
        if error < least:
            best, least = scale, error
    return best


def test_it_finds_what_a_literal_search_finds(lab: Any) -> None:
    source = loud(lab)
    block, inputs = first_block(lab, source)
    grids = {"attn_q": GRIDS["Q4_0"], "attn_k": GRIDS["Q4_0"], "attn_v": GRIDS["Q4_0"]}
    x = inputs["attn_in"][:100]
    seen = lab.observed(x)
    seen = replace(seen, held=seen.fit)
    _, changes = awq.TRANSFORM.block(source, block, {"attn_in": seen}, grids, Setting())
    kept = x[torch.arange(len(x)) % 4 != 0]
    expected = literally(block, ("attn_q", "attn_k", "attn_v"), kept, GRIDS["Q4_0"])
    np.testing.assert_allclose(changes["attn_in"].divide, expected, rtol=1e-4)


def test_the_batches_do_not_matter(lab: Any) -> None:
    """Moments put together from any batches, in any order, lead to the same scales."""
    source = loud(lab)
    block, inputs = first_block(lab, source)
    found = []
    for size in (256, 16, 3):
        seen = {}
        for name, x in inputs.items():
            batches = [lab.moments(part) for part in x.flip(0).split(size)]
            seen[name] = lab.observed(x)
            seen[name] = replace(seen[name], fit=pooled(batches))
        found.append(awq.TRANSFORM.block(source, block, seen, lab.grids_of(block), Setting())[1])
    for other in found[1:]:
        assert set(other) == set(found[0])
        for name, change in other.items():
            torch.testing.assert_close(change.divide, found[0][name].divide, rtol=1e-4, atol=0)


def pooled(batches: list[Any]) -> Any:
    total = sum(batch.tokens for batch in batches)

    def mean(name: str) -> torch.Tensor:
        return sum(getattr(batch, name) * (batch.tokens / total) for batch in batches)

    names = ("second", "mean", "mean_abs", "fourth")
    return replace(batches[0], tokens=total, **{name: mean(name) for name in names})


def test_it_beats_plain_rounding(lab: Any) -> None:
    """On loud channels, W4 in groups of 32: the KL of plain rounding is at least 2.5 times as
    large; that of a fit with the same importances, which AWQ's rounding has too, 1.3 times."""
    source, rows = loud(lab), lab.tokens(8, 64)
    scaled, _ = lab.transformed(awq.TRANSFORM, source, "Q4_0", rows)
    found = divergence(lab, source, rounded(lab, scaled, rows, weighted=True))
    assert divergence(lab, source, rounded(lab, source, rows, weighted=False)) > 2.5 * found
    assert divergence(lab, source, rounded(lab, source, rows, weighted=True)) > 1.3 * found


def rounded(lab: Any, source: Any, rows: Any, *, weighted: bool) -> Any:
    done, grid = [], GRIDS["Q4_0"]
    for block, inputs in zip(lab.blocks(source), lab.seen(source, rows), strict=True):
        new = {}
        for role in block.linears:
            power = inputs[READS[role]].square().mean(0)
            weight = (power / power.mean()).numpy() if weighted else None
            values = grid.decode(grid.quantize(block.weight(role).numpy(), weight))
            new[role, "weight"] = torch.from_numpy(values)
        done.append(block.changed(new))
    return lab.with_blocks(source, done)


def divergence(lab: Any, source: Any, other: Any) -> float:
    """Mean KL(source || other) in nats, on rows of their own."""
    one, two = lab.reference(source), lab.reference(other)
    total = 0.0
    for row in lab.tokens(2, 64, 5):
        p, q = (torch.from_numpy(m.logits(row)).double().log_softmax(-1) for m in (one, two))
        total += float((p.exp() * (p - q)).sum(-1).mean())
    return total


def test_what_does_not_help_on_held_rows_is_left(lab: Any) -> None:
    """Scales that are right for the rows of the search and wrong for all others are refused."""
    source = loud(lab)
    block, inputs = first_block(lab, source)
    seen, grids = lab.observed(inputs["attn_in"]), lab.grids_of(block)
    _, changes = awq.TRANSFORM.block(source, block, {"attn_in": seen}, grids, Setting())
    worse = worsened(block, seen, changes["attn_in"].divide.numpy(), grids)
    values, directions = torch.linalg.eigh(worse)
    assert values[0] < 0 < values[-1]
    for direction, kept in ((directions[:, 0], {"attn_in"}), (directions[:, -1], set())):
        second = torch.outer(direction, direction).float()
        other = replace(seen, held=replace(seen.held, second=second))
        found, changes = awq.TRANSFORM.block(source, block, {"attn_in": other}, grids, Setting())
        assert set(changes) == kept
        assert (found is block) == (not kept)


def worsened(block: Any, seen: Any, scale: np.ndarray, grids: Any) -> torch.Tensor:
    """[cols, cols]: x' A x is by how much the output error at x grows with the scale."""
    second = seen.fit.second.diagonal().numpy()
    total = torch.zeros(256, 256, dtype=torch.float64)
    for linear in trial.linears(block, ("attn_q", "attn_k", "attn_v"), grids):
        for sign, s in ((1, scale), (-1, np.ones_like(scale))):
            d = (trial.rounded(linear, s, second, 1) / torch.from_numpy(s) - linear.w).double()
            total += sign * d.T @ d
    return total


def test_values_of_shared_heads_are_folded_and_reported(lab: Any) -> None:
    """A model with fewer key-value heads than query heads: v -> o has one scale for each channel
    of v, and the changes name every pair."""
    source = loud(lab)
    for role in ("attn_v", "ffn_up"):
        source = lab.edited(source, role, lab.outlier([1, 40], 10.0), "weight")
    assert source.config["num_key_value_heads"] < source.config["num_attention_heads"]
    _, changes = lab.transformed(awq.TRANSFORM, source, "Q4_0")
    known = pairs(source, lab.blocks(source)[0])
    assert [str(known[name]) for name in changes[0]] == [
        "attn_norm -> attn_q, attn_k, attn_v",
        "attn_v -> attn_o",
        "ffn_norm -> ffn_gate, ffn_up",
        "ffn_up -> ffn_down",
    ]
    head = source.config["hidden_size"] // source.config["num_attention_heads"]
    by_head = changes[0]["attn_mid"].divide.reshape(-1, 2, head)  # two query heads for each of v
    assert torch.equal(by_head[:, 0], by_head[:, 1])
    assert by_head[:, 0].unique().numel() > head


def test_linears_that_stay_float_are_not_searched(lab: Any) -> None:
    source = lab.open("llama")
    block, inputs = first_block(lab, source)
    seen = {name: lab.observed(x) for name, x in inputs.items()}
    grids = {"ffn_down": GRIDS["Q4_0"]}
    changed, changes = awq.TRANSFORM.block(source, block, seen, grids, Setting())
    assert set(changes) <= {"ffn_mid"}
    assert torch.equal(changed.weight("attn_q"), block.weight("attn_q"))


def test_dead_channels_are_left_alone(lab: Any) -> None:
    """A channel that no calibration token uses keeps its gain and its weights."""
    source = lab.open("llama")
    source = lab.edited(source, "ffn_norm", lab.outlier([7], 0.0), "weight")
    block, inputs = first_block(lab, source)
    seen = {"ffn_in": lab.observed(inputs["ffn_in"])}
    _, changes = awq.TRANSFORM.block(source, block, seen, lab.grids_of(block), Setting())
    assert changes["ffn_in"].divide[7] == 1


def test_threads_do_not_matter(lab: Any) -> None:
    source = loud(lab)
    block, inputs = first_block(lab, source)
    seen, grids = {"attn_in": lab.observed(inputs["attn_in"])}, lab.grids_of(block)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        few = awq.Awq(alphas=(0.3, 0.5, 0.7))
        found.append(few.block(source, block, seen, grids, Setting(threads=threads))[0])
    torch.set_num_threads(1)
    assert not torch.equal(found[0].weight("attn_q"), block.weight("attn_q"))
    for key, tensor in found[0].tensors.items():
        assert torch.equal(tensor, found[1].tensors[key]), key


@pytest.mark.parametrize("name", ["fp8_tensor", "nvfp4"])
def test_a_trial_binds_a_shared_scale_to_the_scaled_columns(name: str) -> None:
    """Else a channel made larger would be cut off, and the trial judged by that."""
    w = torch.from_numpy(np.random.default_rng(0).standard_normal((128, 128)).astype(np.float32))
    scale = np.where(np.arange(128) % 16 == 0, np.float32(64), np.float32(1)).astype(np.float32)
    linear = trial.Linear(w, FLOATS[name], 1.0)
    found = trial.rounded(linear, scale, np.ones(128, np.float32), 1)
    assert found is not None
    strong = scale > 1
    off = (found / torch.from_numpy(scale) - w).square()[:, strong].mean().sqrt()
    assert off < (0.03 if name == "fp8_tensor" else 0.15)
