"""What is asked becomes a scheme; what MLC cannot run is refused, all of it at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from qconvert.formats.mlc.config import CONFIG
from qconvert.formats.mlc.target import TARGET
from qconvert.formats.refusal import Refused
from qconvert.formats.source import SourceTensor

from .conftest import Model, request


def config_of(source: Any, **asked: Any) -> dict[str, Any]:
    found = json.loads(TARGET.plan(source, request(**asked)).details["mlc"].files[CONFIG])
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    ("asked", "scheme"),
    [({}, "q4f16_1"), ({"bits": 4}, "q4f16_1"), ({"bits": 3}, "q3f16_1"), ({"bits": 16}, "q0f16"),
     ({"type": "q4f16_0", "bits": 4}, "q4f16_0")],
)  # fmt: skip
def test_what_is_asked(asked: dict[str, Any], scheme: str, headers: Callable[..., Any]) -> None:
    plan = TARGET.plan(headers(), request(**asked))
    assert plan.type == scheme
    assert plan.default_name == f"tiny-llama-{scheme}-MLC"
    assert not plan.rule


def test_portable_integers_are_those_of_other_targets(headers: Callable[..., Any]) -> None:
    grids = {
        kind: {one.grid.name for one in TARGET.plan(headers(), request(type=kind)).tensors
               if one.grid is not None}
        for kind in ("q4f16_1", "q4f32_1", "q4bf16_1", "q3f16_1")
    }  # fmt: skip
    assert grids == {
        "q4f16_1": {"int4_g32_portable"}, "q4f32_1": {"int4_g32_portable"},
        "q4bf16_1": {"int4_g32_portable5"}, "q3f16_1": {"int3_g40_portable"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"bits": 8}, "--bits 8"),
        ({"type": "Q4_K_M"}, "is no scheme of MLC"),
        ({"type": "q4f16_ft"}, "--type q4f16_1"),
        ({"type": "q3f16_1", "bits": 4}, "contradict"),
        ({"type": "q0f16", "compatible": True}, "nothing is rounded"),
    ],
)
def test_what_is_not_there(asked: dict[str, Any], told: str, headers: Callable[..., Any]) -> None:
    with pytest.raises(Refused, match=told):
        TARGET.plan(headers(), request(**asked))


@pytest.mark.parametrize(
    ("model_type", "config", "told"),
    [
        ("phi3", {}, "not written for models of type 'phi3'"),
        ("smollm3", {}, "they are for llama, mistral"),
        ("llama", {"attention_bias": True}, r"q_proj.bias and 7 more: MLC's llama has no such"),
        ("qwen3", {"mlp_bias": True, "hidden_act": "gelu"}, "MLC computes silu, swish"),
        ("gemma", {"attention_bias": True, "hidden_act": "gelu_pytorch_tanh"}, "no such bias"),
        ("gemma2", {"tie_word_embeddings": False}, "the head is not the embedding"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope type 'yarn'"),
        ("qwen2", {"head_dim": 32}, "4 heads of 32: MLC wants 256 together"),
        ("gemma3_text", {"layer_types": ["full_attention"] * 2}, "lets every layer slide"),
        ("gemma3_text", {"final_logit_softcapping": 30.0}, "no such cap"),
        ("llama", {"rms_norm_eps": "small"}, "rms_norm_eps is 'small'"),
        ("llama", {"partial_rotary_factor": 0.5}, "rotates whole heads"),
    ],
)
def test_what_mlc_cannot_run(
    model_type: str, config: dict[str, Any], told: str, headers: Callable[..., Any]
) -> None:
    with pytest.raises(Refused, match=told) as found:
        TARGET.plan(headers(model_type, **config), request())
    assert all(reason.remedy for reason in found.value.reasons)


def test_all_reasons_come_at_once(headers: Callable[..., Any]) -> None:
    source = headers(attention_bias=True, hidden_act="relu")
    (source.folder / "tokenizer.json").write_text(
        json.dumps({"model": {"vocab": {"a": 600}}, "added_tokens": []})
    )
    with pytest.raises(Refused) as found:
        TARGET.plan(source, request(bits=5))
    text = str(found.value)
    for told in ("--bits 5", "no such bias", "'relu'", "601 tokens, the embedding 512 rows"):
        assert told in text


def test_fields_that_a_target_does_not_follow_are_not_taken() -> None:
    assert TARGET.takes == {"bits", "type"}


def test_names_are_those_of_mlc(headers: Callable[..., Any]) -> None:
    for model_type, present, absent in (
        ("llama", "model.layers.1.self_attn.qkv_proj.q_weight", "c_attn"),
        ("qwen3", "model.layers.1.self_attn.c_attn.q_scale", "qkv_proj"),
        ("gemma2", "model.layers.1.pre_feedforward_layernorm.weight", "lm_head"),
        ("gemma3_text", "language_model.model.layers.1.self_attn.q_norm.weight", "qkv_proj"),
    ):
        own = {"tie_word_embeddings": True} if model_type.startswith("gemma") else {}
        found = TARGET.plan(headers(model_type, **own), request()).details["mlc"].records
        assert present in found
        assert not any(absent in name for name in found)


def test_rope_is_found_in_every_spelling(model: Callable[..., Model]) -> None:
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
              "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
    new = config_of(model(rope_parameters={**llama3, "rope_theta": 500000.0}))["model_config"]
    old = config_of(model(rope_parameters=None, rope_theta=500000.0, rope_scaling=llama3))
    assert new == old["model_config"]
    assert new["position_embedding_base"] == 500000
    assert new["rope_scaling"] == llama3
    assert config_of(model("qwen2"))["model_config"]["rope_theta"] == 500000
    both = {"full_attention": {"rope_theta": 1e6, "rope_type": "default"},
            "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"}}  # fmt: skip
    inner = config_of(model("gemma3_text", rope_parameters=both))["model_config"]["text_config"]
    assert inner["position_embedding_base"] == 1000000


def test_windows(model: Callable[..., Model]) -> None:
    rolling = config_of(model("mistral", sliding_window=128))
    assert (
        rolling["context_window_size"],
        rolling["sliding_window_size"],
        rolling["prefill_chunk_size"],
        rolling["attention_sink_size"],
    ) == (-1, 128, 128, 4)
    assert config_of(model("mistral", sliding_window=None))["context_window_size"] == 512
    cut = model("gemma2", sliding_window=128)
    assert config_of(cut)["context_window_size"] == 128
    assert any("cut to 128 of 512" in note for note in TARGET.plan(cut, request()).notes)
    assert config_of(model("qwen2", sliding_window=128))["context_window_size"] == 512
    used = model("qwen2", sliding_window=128, use_sliding_window=True)
    assert config_of(used)["context_window_size"] == 128


def test_sampling_is_the_models_own(model: Callable[..., Model]) -> None:
    source = model(temperature=0.5, top_p=0.9)
    (source.folder / "generation_config.json").write_text(
        json.dumps({"temperature": 0.7, "eos_token_id": [2, 5], "top_k": 20})
    )
    found = config_of(source)
    assert (found["temperature"], found["top_p"], found["repetition_penalty"]) == (0.7, 0.9, 1.0)
    assert (found["eos_token_id"], found["bos_token_id"]) == ([2, 5], 1)
    assert found["conv_template"]["stop_token_ids"] == [2, 5]


def test_a_planned_tensor_is_read_from_headers_alone(headers: Callable[..., Any]) -> None:
    plan = TARGET.plan(headers("qwen3"), request())  # rows() of these raises
    assert all(isinstance(one.source, SourceTensor) for one in plan.tensors)
    stored = sum(record.nbytes for record in plan.details["mlc"].records.values())
    assert sum(one.nbytes for one in plan.tensors) == stored
