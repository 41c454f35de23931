"""The mixing of attention is what transformers' own attention weights say it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qconvert.checkpoint import open_checkpoint
from qconvert.engine.observe import observe
from qconvert.engine.pieces import UNMIXED, pieces
from qconvert.engine.reading import read_block
from qconvert.engine.skeleton import skeleton
from qconvert.engine.stream import Stream, workers

CPU = torch.device("cpu")
TINY = Callable[..., Path]


def eager_weights(folder: Path, ids: np.ndarray) -> Any:
    """Attention of every block [rows, heads, to, from], by the eager implementation."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.inference_mode():
        return model(torch.from_numpy(ids.astype(np.int64)), output_attentions=True).attentions


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "phi3", "gpt_neox", "gpt2"])
def test_mixed_moments_are_those_of_attention_times_inputs(tiny_model: TINY, family: str) -> None:
    folder = tiny_model(family)
    ids = np.random.default_rng(0).integers(5, 500, (4, 40)).astype(np.int32)
    source = open_checkpoint(folder)
    block = read_block(source, 0, CPU)
    bones = skeleton(source, CPU)
    with workers(1, CPU) as pool:
        hidden, calls = bones.embed(ids)
        stream = Stream(bones, calls, pool)
        sight = observe(stream, block, hidden, frozenset({3}), mixed=True)
        inputs = [wave.inputs["attn_in"] for wave in stream.captured(block, hidden, ["attn_in"])]
    x = torch.cat(inputs).reshape(4, 40, -1).double()
    weights = eager_weights(folder, ids)[0].double()
    mixed = torch.einsum("rhtj,rjc->rhtc", weights, x)  # what each head makes of the inputs

    def second(rows: slice) -> torch.Tensor:
        flat = mixed[rows].flatten(0, 2)
        return flat.t() @ flat / len(flat)

    assert sight.mixed is not None
    scale = float(second(slice(3)).abs().max())
    assert torch.allclose(sight.mixed.fit.double(), second(slice(3)), atol=1e-4 * scale)
    assert torch.allclose(sight.mixed.held.double(), second(slice(3, 4)), atol=1e-4 * scale)


@pytest.mark.parametrize(("family", "role"), [("llama", "attn_v"), ("phi3", "attn_qkv"),
                                              ("gpt_neox", "attn_qkv")])  # fmt: skip
def test_only_rows_of_v_are_judged_behind_attention(
    tiny_model: TINY, family: str, role: str
) -> None:
    source = open_checkpoint(tiny_model(family))
    block = read_block(source, 0, CPU)
    bones = skeleton(source, CPU)
    ids = np.random.default_rng(1).integers(5, 500, (3, 24)).astype(np.int32)
    with workers(1, CPU) as pool:
        hidden, calls = bones.embed(ids)
        stream = Stream(bones, calls, pool)
        sight = observe(stream, block, hidden, frozenset({2}), mixed=True)
    cut = pieces(source, block, role, sight)
    rows = np.concatenate([piece.rows for piece in cut])
    assert np.array_equal(np.sort(rows), np.arange(block.weight(role).shape[0]))
    head, kv = 64, 4 if family == "gpt_neox" else 2
    values = {
        "llama": np.arange(128),
        "phi3": np.arange(256 + 128, 256 + 256),
        "gpt_neox": np.concatenate([np.arange(64) + 192 * h + 128 for h in range(4)]),
    }[family]
    assert values.size == head * kv
    assert np.array_equal(cut[-1].rows, values)
    plain = sight.inputs["attn_in"].fit.second
    assert sight.mixed is not None
    blend = (1 - UNMIXED) * sight.mixed.fit / sight.mixed.fit.diagonal().mean()
    blend = blend + UNMIXED * plain / plain.diagonal().mean()
    assert torch.allclose(cut[-1].fit, blend, rtol=1e-5)
    other = pieces(source, block, "attn_o", sight)
    assert len(other) == 1
    assert torch.equal(other[0].fit, sight.inputs["attn_mid"].fit.second)
