"""Rotations against dense matrices, and what is refused."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from qconvert.algorithms.hadamard import rotation
from qconvert.algorithms.slots import Setting
from qconvert.algorithms.transforms.quarot import TRANSFORM


def weights(lab: Any, source: Any) -> dict[tuple[int | None, str, str], np.ndarray]:
    values = lab.arrays(source)
    return {(t.block, t.role, t.part): values[t.name].astype(np.float64) for t in source.tensors}


@pytest.mark.parametrize(
    "options",
    [
        {"attention_bias": True, "mlp_bias": True},
        {"hidden_size": 192, "num_attention_heads": 6, "tie_word_embeddings": True},
    ],
    ids=["biases", "192, tied"],
)
def test_it_is_the_algebra_of_the_paper(lab: Any, options: dict[str, Any]) -> None:
    source = lab.open("llama", **options)
    turned = TRANSFORM.source(source, Setting(seed=5))
    a, b = weights(lab, source), weights(lab, turned)
    hidden, head = source.config["hidden_size"], 64 if "mlp_bias" in options else 32
    q, r = rotation(hidden, 5, 0).matrix(), rotation(head, 5, 1).matrix()
    heads, kv_heads = source.config["num_attention_heads"], 2
    over_heads, over_kv = np.kron(np.eye(heads), r), np.kron(np.eye(kv_heads), r)
    expected = {(None, "embedding", "weight"): a[None, "embedding", "weight"] @ q}
    head_from = "embedding" if source.tied else "head"
    final = np.diag(a[None, "final_norm", "weight"])
    expected[None, "head", "weight"] = a[None, head_from, "weight"] @ final @ q
    expected[None, "final_norm", "weight"] = np.ones(hidden)
    for i in (0, 1):
        for norm, roles in (
            ("attn_norm", ("attn_q", "attn_k", "attn_v")), ("ffn_norm", ("ffn_gate", "ffn_up")),
        ):  # fmt: skip
            expected[i, norm, "weight"] = np.ones(hidden)
            for role in roles:
                gained = a[i, role, "weight"] @ np.diag(a[i, norm, "weight"])
                expected[i, role, "weight"] = gained @ q
        expected[i, "attn_v", "weight"] = over_kv.T @ expected[i, "attn_v", "weight"]
        expected[i, "attn_o", "weight"] = q.T @ a[i, "attn_o", "weight"] @ over_heads
        expected[i, "ffn_down", "weight"] = q.T @ a[i, "ffn_down", "weight"]
        if "mlp_bias" in options:
            for role in ("attn_q", "attn_k", "ffn_gate", "ffn_up"):
                expected[i, role, "bias"] = a[i, role, "bias"]
            expected[i, "attn_v", "bias"] = a[i, "attn_v", "bias"] @ over_kv
            for role in ("attn_o", "ffn_down"):
                expected[i, role, "bias"] = a[i, role, "bias"] @ q
    assert set(b) == set(expected)
    for key, values in expected.items():
        np.testing.assert_allclose(b[key], values, atol=2e-6, err_msg=str(key))


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_any_rows_are_those_of_the_whole(lab: Any, family: str) -> None:
    """Reading in chunks of any size gives the same bytes as reading a tensor whole."""
    source = TRANSFORM.source(lab.open(family), Setting())
    for t in source.tensors:
        if len(t.shape) == 2:
            whole = source.rows(t, 0, t.shape[0])
            edges = [0, 1, 100, t.shape[0] - 3, t.shape[0]]
            parts = [source.rows(t, *span) for span in pairwise(edges)]
            assert whole.dtype == np.float32
            assert np.array_equal(np.concatenate(parts), whole), t.name


def test_it_is_still_a_source(lab: Any) -> None:
    source = lab.open("llama", tie_word_embeddings=True, dtype="bfloat16")
    turned = TRANSFORM.source(source, Setting())
    assert source.tied
    assert not turned.tied
    assert turned.config["tie_word_embeddings"] is False
    assert (turned.folder, turned.model_type) == (source.folder, source.model_type)
    assert turned.files == source.files
    assert turned.tensors[:-1] == source.tensors
    head = turned.tensors[-1]
    assert (head.name, head.role, head.dtype) == ("lm_head.weight", "head", "BF16")
    assert [note for note in turned.notes if "head" in note]


def test_the_seed_decides(lab: Any) -> None:
    source = lab.open("llama")
    embedding = source.tensors[0]
    one, same, other = (
        TRANSFORM.source(source, Setting(seed=s)).rows(embedding, 0, 4) for s in (0, 0, 1)
    )
    assert np.array_equal(one, same)
    assert not np.allclose(one, other)


def test_outliers_are_spread(lab: Any) -> None:
    """What it is for: the largest weight of a reader and the largest activation, in deviations."""
    source = lab.edited(lab.open("llama"), "attn_norm", lab.outlier([3, 77], 30.0), "weight")
    turned = TRANSFORM.source(source, Setting())

    def peak(one: Any) -> float:
        x = lab.seen(one, lab.tokens(2, 32))[0]["attn_in"]
        return float(x.abs().max() / x.square().mean().sqrt())

    assert 3 * peak(turned) < peak(source)


@pytest.mark.parametrize(
    ("family", "reasons"),
    [("gpt2", ["positions", "LayerNorm"]), ("gpt_neox", ["LayerNorm"]), ("gemma3_text", ["after"])],
)
def test_other_norms_are_refused(lab: Any, family: str, reasons: list[str]) -> None:
    found = TRANSFORM.problems(lab.open(family))
    assert len(found) == len(reasons)
    for problem, word in zip(found, reasons, strict=True):
        assert word in problem.problem
        assert family in problem.problem
        assert problem.remedy


def test_smaller_error_of_rounding(lab: Any) -> None:
    """Weights of a reader that took over loud gains: one scale a row, 4 bits, plain rounding; the
    squared error of the output falls at least three times."""
    source = lab.edited(lab.open("llama"), "attn_norm", lab.outlier([3, 77], 30.0), "weight")
    errors = []
    gain = lab.blocks(source)[0].weight("attn_norm")
    flat = lab.edited(source, "attn_norm", np.ones_like, "weight")
    folded = lab.blocks(flat)[0].weight("attn_q") * gain
    turned = lab.blocks(TRANSFORM.source(source, Setting()))[0].weight("attn_q")
    for w in (folded, turned):
        step = w.abs().amax(1, keepdim=True) / 7
        errors.append(float((torch.round(w / step) * step - w).square().sum()))
    assert 3 * errors[1] < errors[0]
