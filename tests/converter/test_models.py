"""The facts of models.py against what transformers' own classes save."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qconvert.config import read_config
from qconvert.formats.source import ROLES
from qconvert.models import FAMILIES, config_problems, dimensions

OVERRIDES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"head_dim": 32, "num_key_value_heads": 1}),
    ("mistral", {"head_dim": None}),
    ("mistral", {"head_dim": 128}),
    ("qwen2", {}),
    ("qwen3", {}),
    ("qwen3", {"attention_bias": True, "head_dim": 128}),
    ("smollm3", {"attention_bias": True}),
    ("gemma", {}),
    ("gemma2", {"tie_word_embeddings": False, "head_dim": 128}),
    ("gemma3_text", {}),
    ("gemma3_text", {"tie_word_embeddings": False, "head_dim": 128}),
    ("phi3", {"num_key_value_heads": 1}),
    ("gpt_neox", {}),
    ("gpt_neox", {"attention_bias": False}),
    ("gpt2", {}),
    ("gpt2", {"n_inner": 512, "tie_word_embeddings": False}),
]


@pytest.mark.parametrize(("family", "overrides"), OVERRIDES, ids=str)
def test_names_and_shapes_are_those_that_transformers_saves(
    family: str, overrides: dict[str, Any], tiny_model: Callable[..., Path]
) -> None:
    from safetensors import safe_open

    folder = tiny_model(family, **overrides)
    config = read_config(folder)
    tied = config.fields["tie_word_embeddings"]
    expected = {
        tensor.full_name: tensor.shape[::-1] if tensor.transposed else tensor.shape
        for tensor in FAMILIES[family].expected(config.fields, head=not tied)
    }
    with safe_open(folder / "model.safetensors", "np") as saved:
        assert expected == {name: tuple(saved.get_slice(name).get_shape()) for name in saved.keys()}


def test_every_family_has_a_tiny_model_in_these_tests() -> None:
    assert {family for family, _ in OVERRIDES} == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_roles_are_known(family: str) -> None:
    facts = FAMILIES[family]
    modules = (*facts.before, *facts.block, *facts.after, facts.head)
    roles = [module.role for module in modules]
    assert set(roles) <= set(ROLES)
    assert len(roles) == len(set(roles))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": None}, "hidden_size is None"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"vocab_size": "512"}, "vocab_size is '512'"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"num_key_value_heads": -1}, "num_key_value_heads is -1"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"num_attention_heads": 6, "head_dim": None}, "not a multiple of num_attention_heads"),
        ({"num_key_value_heads": 3}, "not a multiple of num_key_value_heads"),
    ],
)
def test_sizes_that_make_no_sense_are_told(change: dict[str, Any], words: str) -> None:
    config = {
        "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 512,
    }  # fmt: skip
    assert config_problems(config) == []
    assert words in " ".join(config_problems({**config, **change}))


def test_dimensions_of_grouped_queries() -> None:
    sizes = dimensions(
        {
            "hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 100, "vocab_size": 9,
        }
    )  # fmt: skip
    assert sizes["q"] == 128
    assert sizes["kv"] == 64
    assert sizes["qkv"] == 256
    assert sizes["gate_up"] == 200
    assert sizes["blocks"] == 3
