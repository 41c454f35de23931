"""The keys that llama.cpp reads, and what it cannot do refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qconvert.checkpoint import open_checkpoint
from qconvert.formats.gguf.architectures import ARCHITECTURES
from qconvert.formats.gguf.target import TARGET
from qconvert.formats.refusal import Refused
from qconvert.formats.target import Plan, Request

LLAMA3 = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


def _values(plan: Plan) -> dict[str, Any]:
    return {entry.key: entry.value for entry in plan.details["entries"]}


def test_a_plain_model_has_every_key(fake_source: Any) -> None:
    found = _values(TARGET.plan(fake_source("llama", rms_norm_eps=1e-5), Request(type="Q4_K_M")))
    assert found["general.architecture"] == "llama"
    assert found["general.file_type"] == 15
    assert found["general.quantization_version"] == 2
    assert {key: value for key, value in found.items() if key.startswith("llama.")} == {
        "llama.block_count": 2,
        "llama.context_length": 128,
        "llama.embedding_length": 256,
        "llama.feed_forward_length": 256,
        "llama.vocab_size": 64,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 64,
        "llama.attention.value_length": 64,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": 64,
        "llama.rope.freq_base": 10000.0,
    }


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            {"rope_theta": 5000.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_parameters": {"rope_theta": 5000.0, "rope_type": "linear", "factor": 2.0}},
        ),
        (
            {"rope_theta": 5000.0, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
            {"rope_parameters": {"rope_theta": 5000.0, "rope_type": "llama3", **LLAMA3}},
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0}},
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0,
                                 "original_max_position_embeddings": 128}},
        ),
        ({"rope_scaling": None, "rope_theta": 7.0}, {"rope_parameters": {"rope_theta": 7.0}}),
    ],
)  # fmt: skip
def test_both_spellings_of_rope_mean_the_same(
    old: dict[str, Any], new: dict[str, Any], fake_source: Any
) -> None:
    before, after = (
        TARGET.plan(fake_source("llama", **config), Request(type="F16")) for config in (old, new)
    )
    assert _values(before) == _values(after)
    assert [t.name for t in before.tensors] == [t.name for t in after.tensors]
    for one, other in zip(before.tensors, after.tensors, strict=True):
        if one.values is not None:
            assert other.values is not None
            assert one.values.tolist() == other.values.tolist()


def test_gemma_in_both_spellings_has_two_ropes_and_a_window(fake_source: Any) -> None:
    common = {"query_pre_attn_scalar": 64, "num_hidden_layers": 8, "sliding_window": 32}
    old = {"rope_theta": 1e5, "rope_local_base_freq": 2e4, "rope_scaling": {
        "rope_type": "linear", "factor": 8.0}}  # fmt: skip
    new = {"rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
    }}  # fmt: skip
    for config in (old, new):
        plan = TARGET.plan(fake_source("gemma3_text", **common, **config), Request(type="F16"))
        found = _values(plan)
        assert found["gemma3.rope.freq_base"] == 1e5
        assert found["gemma3.rope.freq_base_swa"] == 2e4
        assert found["gemma3.rope.scaling.factor"] == 8.0
        assert found["gemma3.attention.sliding_window"] == 32
        assert "gemma3.attention.sliding_window_pattern" not in found  # llama.cpp's own
    other = fake_source("gemma3_text", **common, **new, sliding_window_pattern=3)
    pattern = _values(TARGET.plan(other, Request()))["gemma3.attention.sliding_window_pattern"]
    assert pattern == (True, True, False, True, True, False, True, True)


def test_a_window_that_llama_cpp_has_not_shortens_the_context_and_says_so(
    fake_source: Any,
) -> None:
    plan = TARGET.plan(fake_source("mistral", sliding_window=32), Request())
    assert _values(plan)["llama.context_length"] == 32
    assert any("context length is 32 (the window) instead of 128" in note for note in plan.notes)
    for config in ({"sliding_window": None}, {"sliding_window": 128}, {"sliding_window": 4096}):
        plan = TARGET.plan(fake_source("mistral", **config), Request())
        assert _values(plan)["llama.context_length"] == 128
        assert not any("window" in note for note in plan.notes)


def test_longrope_says_when_its_long_factors_are_used(fake_source: Any) -> None:
    given = {"type": "longrope", "short_factor": [1.0] * 32, "long_factor": [2.0] * 32}
    source = fake_source("phi3", rope_scaling=given, original_max_position_embeddings=64)
    plan = TARGET.plan(source, Request())
    assert any("opened with a context above 64" in note for note in plan.notes)
    assert [tensor.name for tensor in plan.tensors if tensor.source is None] == [
        "rope_factors_long.weight", "rope_factors_short.weight",
    ]  # fmt: skip


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "dynamic rope": ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
                     "rope scaling 'dynamic' cannot be expressed"),
    "llama3 rope elsewhere": ("qwen2", {"rope_scaling": {"rope_type": "llama3", **LLAMA3}},
                              "rope scaling 'llama3' cannot be expressed for llama.cpp's qwen2"),
    "yarn in gemma": ("gemma3_text", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0},
                                      "query_pre_attn_scalar": 64}, "'yarn' cannot be expressed"),
    "yarn betas": ("qwen3", {"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": 64}},
                   "yarn's beta_fast is 64, which llama.cpp would ignore"),
    "yarn truncation": ("qwen3", {"rope_scaling": {"type": "yarn", "factor": 2.0,
                                                   "truncate": False}}, "yarn's truncate is False"),
    "sections": ("qwen2", {"rope_scaling": {"type": "default", "mrope_section": [1]}},
                 "unknown rope parameters mrope_section"),
    "partial rotary": ("llama", {"partial_rotary_factor": 0.5},
                       "only 32 of 64 values of a head are rotated"),
    "factors of another length": (
        "phi3", {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
        "long_factor is not 32 positive numbers"),
    "scaled sliding layers": (
        "gemma3_text", {"query_pre_attn_scalar": 64, "rope_parameters": {
            "sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}},
        "rope scaling 'linear' on sliding layers"),
    "ropes by layer": (
        "qwen3", {"rope_parameters": {"full_attention": {"rope_theta": 1e4},
                                      "sliding_attention": {"rope_theta": 1e5}}},
        "rope parameters differ by layer type"),
    "no rope factor": ("llama", {"rope_scaling": {"type": "linear"}},
                       "rope parameter factor is None"),
    "attention soft cap": ("gemma3_text", {"attn_logit_softcapping": 50.0,
                                           "query_pre_attn_scalar": 64},
                           "attn_logit_softcapping is 50.0, which llama.cpp's gemma3 would ignore"),
    "soft cap elsewhere": ("llama", {"final_logit_softcapping": 30.0},
                           "final_logit_softcapping is 30.0"),
    "bidirectional": ("gemma3_text", {"use_bidirectional_attention": True,
                                      "query_pre_attn_scalar": 64}, "use_bidirectional_attention"),
    "attention scale": ("gemma3_text", {"query_pre_attn_scalar": 256},
                        "query_pre_attn_scalar is 256"),
    "activation": ("llama", {"hidden_act": "relu"}, "the activation is 'relu'"),
    "other activation": ("gpt2", {"activation_function": "silu"}, "the activation is 'silu'"),
    "scaled by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True},
                        "scale_attn_by_inverse_layer_idx is True"),
    "uneven heads": ("qwen2", {"head_dim": 32},
                     "4 heads of 32 do not make the hidden size 256"),
    "bias of o": ("qwen3", {"attention_bias": True},
                  "o_proj.bias: llama.cpp's qwen3 has no place for a bias of attn_o"),
    "missing biases": ("gpt_neox", {"attention_bias": False, "num_key_value_heads": 4},
                       "needs blk.0.attn_qkv.bias and 1 more"),
    "other rope layers": ("smollm3", {"no_rope_layers": [1, 0]}, "not every fourth block"),
    "window beside no rope": ("smollm3", {"use_sliding_window": True},
                              "use_sliding_window is True"),
    "other rope interval": ("smollm3", {"no_rope_layer_interval": 2}, "interval is 2, not 4"),
    "layer types": ("gemma3_text", {"layer_types": ["chunked_attention"] * 2,
                                    "query_pre_attn_scalar": 64}, "layer_types is not 2 times"),
    "no epsilon": ("llama", {"rms_norm_eps": "small"}, "rms_norm_eps is 'small'"),
    "too deep": ("llama", {"num_hidden_layers": 600}, "at most 512"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_expressed_is_refused_by_name(name: str, fake_source: Any) -> None:
    model_type, config, said = REFUSED[name]
    source = fake_source(model_type, **config)
    with pytest.raises(Refused) as refused:
        TARGET.plan(source, Request())
    assert said in str(refused.value)


def test_all_reasons_come_at_once(fake_source: Any) -> None:
    source = fake_source("llama", hidden_act="relu", rope_scaling={"type": "dynamic"})
    with pytest.raises(Refused) as refused:
        TARGET.plan(source, Request(bits=7))
    said = str(refused.value)
    assert "no type of 7 bits" in said
    assert "'relu'" in said
    assert "'dynamic'" in said


def test_a_type_without_gguf_architecture_is_refused(fake_source: Any) -> None:
    source = fake_source("llama")
    object.__setattr__(source, "model_type", "opt")
    with pytest.raises(Refused, match="no architecture for 'opt'"):
        TARGET.plan(source, Request())


def test_licence_and_name_come_from_the_model_card(
    tiny_copy: Callable[..., Path],
) -> None:
    folder = tiny_copy("llama")
    card = '---\nlicense: apache-2.0\nmodel_name: "Tiny One"\nlanguage:\n- en\n---\n# Tiny\n'
    (folder / "README.md").write_text(card, encoding="utf-8")
    found = _values(TARGET.plan(open_checkpoint(folder), Request()))
    assert found["general.name"] == "Tiny One"
    assert found["general.license"] == "apache-2.0"


def test_a_vocabulary_of_another_size_than_the_embedding_is_refused(fake_source: Any) -> None:
    source = fake_source("llama")
    source.config["vocab_size"] = 65
    with pytest.raises(Refused, match="the tokenizer has 65 tokens, the embedding 64 rows"):
        TARGET.plan(source, Request())


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_defaults_are_those_of_transformers(model_type: str) -> None:
    """What config.json leaves out means here what it means there."""
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(model_type)
    flat = {**config.to_dict(), **_of_rope(getattr(config, "rope_parameters", {}))}
    for key, value in ARCHITECTURES[model_type].defaults.items():
        if key == "sliding_window" and model_type.startswith("qwen"):
            assert config.sliding_window is None  # use_sliding_window is False
        elif key == "sliding_window_pattern":
            assert config.layer_types.index("full_attention") + 1 == value
        else:
            assert flat[key] == value, key


def _of_rope(given: dict[str, Any]) -> dict[str, Any]:
    if not given:
        return {}
    full, local = given.get("full_attention", given), given.get("sliding_attention", {})
    named = {"rope_theta": full["rope_theta"], "rotary_emb_base": full["rope_theta"]}
    if "partial_rotary_factor" in full:
        factor = full["partial_rotary_factor"]
        named |= {"partial_rotary_factor": factor, "rotary_pct": factor}
    return named | ({"rope_local_base_freq": local["rope_theta"]} if local else {})
