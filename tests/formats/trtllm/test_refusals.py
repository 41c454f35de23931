"""What TensorRT-LLM and Edge-LLM cannot take is refused from headers, and the remedy works."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from qconvert.formats.refusal import Refused
from qconvert.formats.source import Source
from qconvert.formats.target import Request, target_named

Headers = Callable[..., Source]

NARROW = {"hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 3, "head_dim": 32,
          "num_key_value_heads": 3}  # fmt: skip
"""Inputs of which 32 is the largest power of two."""
CASES: list[tuple[str, dict[str, Any], dict[str, Any], str, str, dict[str, Any]]] = [
    # target, model, request, what is wrong, what would work, the request that follows it
    ("trtllm", {}, {"symmetric": False}, "reads no w4a16-g128-asym",
     "--scheme w4a16-awq --group 128", {"scheme": "w4a16-awq", "group": 128, "symmetric": None}),
    ("trtllm", {}, {"scheme": "w4a16-awq", "symmetric": False}, "w4a16-awq and --asymmetric",
     "leave one of them out", {"symmetric": None}),
    ("trtllm", {}, {"scheme": "w8a16", "symmetric": False}, "w8a16 and --asymmetric contradict",
     "leave one of them out", {"symmetric": None}),
    ("trtllm", {}, {"type": "w4a16-g64-asym"}, "reads no w4a16-g64-asym",
     "--scheme w4a16-awq --group 64", {"type": None, "scheme": "w4a16-awq", "group": 64}),
    ("trtllm", {}, {"scheme": "w8a8"}, "reads no w8a8",
     "--scheme fp8-channel or --to edge-llm --scheme w8a8-sq", {"scheme": "fp8-channel"}),
    ("trtllm", {}, {"type": "w8a8-static"}, "w8a8-static", "--scheme fp8 or --to edge-llm",
     {"type": None, "scheme": "fp8"}),
    ("trtllm", {}, {"kv": "int8"}, "--kv int8", "--kv fp8 or --kv nvfp4",
     {"kv": "fp8", "scheme": "fp8"}),
    ("trtllm", {}, {"scheme": "w4a16-awq", "group": 32}, "w4a16-awq is computed with 128, 64",
     "--group 64", {"group": 64}),
    ("trtllm", {}, {"type": "w4a16-g32"}, "w4a16-g32", "--scheme w4a16-awq --group 64",
     {"type": None, "scheme": "w4a16-awq", "group": 64}),
    ("trtllm", {}, {"group": 0}, "--group channel: w4a16-awq is computed with 128, 64",
     "--scheme w4a16", {"group": None, "scheme": "w4a16"}),
    ("trtllm", {}, {"scheme": "w4a16", "group": 64}, "w4a16 and --group 64 contradict",
     "--scheme w4a16-awq --group 64", {"scheme": "w4a16-awq"}),
    ("trtllm", {}, {"scheme": "w4a8-awq", "group": 64}, "w4a8-awq is computed with 128",
     "--group 128", {"group": 128}),
    ("trtllm", {}, {"scheme": "w8a16", "group": 128}, "w8a16 and --group 128 contradict",
     "leave one of them out", {"group": None}),
    ("trtllm", NARROW, {"scheme": "w4a16-awq"}, "groups of 64 do not divide the 96 inputs",
     "--scheme w4a16", {"scheme": "w4a16"}),
    ("trtllm", NARROW, {}, "groups of 64 do not divide the 96 inputs", "--scheme w4a16",
     {"scheme": "w4a16"}),
    ("trtllm", {"hidden_size": 192, "num_attention_heads": 3, "num_key_value_heads": 3},
     {"scheme": "w4a8-awq"}, "groups of 128 do not divide the 192 inputs", "--scheme nvfp4",
     {"scheme": "nvfp4"}),
    ("trtllm", {"intermediate_size": 528}, {"scheme": "w8a16", "hardware": "ada"},
     "wants inputs in multiples of 64; model.layers.0.mlp.down_proj has 528", "--scheme fp8",
     {"scheme": "fp8"}),
    ("trtllm", {"intermediate_size": 520}, {"scheme": "w8a16"},
     "wants inputs in multiples of 64; model.layers.0.mlp.down_proj has 520", "leave it in float:"
     " --layer PATTERN=float", {"layers": (("down_proj", "float"),)}),
    ("trtllm", {"intermediate_size": 320}, {"scheme": "w4a16-awq", "tp": 2},
     "groups of 64 do not divide the 160 inputs of model.layers.0.mlp.down_proj of each of its"
     " shards (K = 320)", "--scheme w4a16", {"scheme": "w4a16"}),
    ("trtllm", {"intermediate_size": 516}, {"scheme": "fp8"},
     "the FP8 product wants outputs in multiples of 16; model.layers.0.mlp.gate_proj and up_proj"
     " has 1032", "leave it in float", {"layers": (("mlp.*", "float"),)}),
    ("trtllm", {"num_key_value_heads": 1}, {"scheme": "fp8-block"},
     "wants outputs of each linear in multiples of 128; model.layers.0.self_attn.q_proj, k_proj"
     " and v_proj has 64", "--scheme fp8-channel", {"scheme": "fp8-channel"}),
    ("trtllm", {}, {"scheme": "fp8-block", "tp": 2}, "v_proj of a rank has 64",
     "--scheme fp8-channel", {"scheme": "fp8-channel"}),
    ("trtllm", {"dtype": "F16"}, {"scheme": "fp8-block"}, "computes in BF16, and the model's"
     " floats are F16", "--scheme fp8-channel", {"scheme": "fp8-channel"}),
    ("trtllm", {}, {"scheme": "w4a16-awq", "kv": "fp8"}, "reads no scales of a KV cache in fp8",
     "--scheme nvfp4 or leave out --kv", {"scheme": "nvfp4"}),
    ("trtllm", {}, {"scheme": "fp8-channel", "kv": "nvfp4"}, "no scales of a KV cache in nvfp4",
     "--scheme fp8 or leave out --kv", {"scheme": "fp8"}),
    ("trtllm", {}, {"scheme": "w8a16", "kv": "fp8"}, "reads no scales", "or leave out --kv",
     {"kv": None}),
    ("trtllm", {}, {"type": "bf16", "kv": "fp8"}, "reads no scales of it beside"
     " model.layers.0.self_attn.k_proj in float", "leave out --kv", {"kv": None}),
    ("trtllm", {}, {"scheme": "fp8", "kv": "fp8", "layers": (("self_attn.*", "float"),)},
     "beside model.layers.0.self_attn.k_proj in float", "leave out --kv", {"kv": None}),
    ("trtllm", {}, {"container": "gptq"}, "--container gptq: trtllm", "--container modelopt",
     {"container": "modelopt"}),
    ("trtllm", {}, {"scheme": "mxfp4"}, "reads no mxfp4", "--scheme w4a16-awq --group 64",
     {"scheme": "w4a16-awq", "group": 64}),
    ("trtllm", {}, {"scheme": "w4a16-awq", "hardware": "blackwell"},
     "trtllm on blackwell: no kernel there takes w4a16-g128", "--scheme nvfp4a16",
     {"scheme": "nvfp4a16"}),
    ("trtllm", {}, {"scheme": "fp8", "hardware": "ampere"}, "on ampere: no kernel there takes",
     "--scheme w8a16; or leave out --hardware", {"scheme": "w8a16"}),
    ("trtllm", {"num_key_value_heads": 2}, {"scheme": "fp8-channel", "tp": 4},
     "several ranks hold the same of 2 heads of keys and values", "--tp 2", {"tp": 2}),
    ("trtllm", {"model_type": "phi3"}, {}, "qkv_proj is stored as one, is taken apart",
     "--scheme nvfp4a16", {"scheme": "nvfp4a16"}),
    ("trtllm", {"model_type": "phi3"}, {"scheme": "fp8-block"}, "gate_up_proj is stored as one",
     "--scheme fp8", {"scheme": "fp8"}),
    ("trtllm", {"model_type": "phi3"}, {"scheme": "nvfp4", "layers": (("o_proj", "fp8"),)},
     "does not find model.layers.0.self_attn.qkv_proj in a mix", "--scheme fp8-tensor",
     {"scheme": "fp8", "layers": ()}),
    ("trtllm", {"model_type": "phi3"}, {"scheme": "fp8", "kv": "fp8"},
     "reads no scales of a KV cache in fp8 of linears that are stored as one", "leave out --kv",
     {"kv": None}),
    ("trtllm", {}, {"tp": 3}, "--tp 3 does not divide the 4 heads", "leave --tp out",
     {"tp": None}),
    ("trtllm", {"model_type": "smollm3"}, {}, "not known to serve models of type smollm3",
     "llama, mistral", {}),
    ("trtllm", {}, {"layers": (("k_proj", "fp8"),)}, "would differ", "--layer v_proj=", {}),
    ("edge-llm", {}, {"scheme": "w8a16", "group": 0}, "no kernel takes w8a16-channel",
     "--scheme", {"scheme": "w8a8-sq", "group": None}),
    ("edge-llm", {}, {"type": "w4a8-fp8-g128"}, "no kernel takes w4a8-fp8-g128", "--scheme nvfp4",
     {"type": None, "scheme": "nvfp4"}),
    ("edge-llm", {}, {"scheme": "fp8-channel"}, "no kernel takes fp8-channel", "--scheme fp8",
     {"scheme": "fp8"}),
    ("edge-llm", {}, {"scheme": "w8a8"}, "reads no w8a8", "--scheme w8a8-sq",
     {"scheme": "w8a8-sq"}),
    ("edge-llm", {"num_key_value_heads": 1, "head_dim": 32, "hidden_size": 128}, {},
     "Int4GroupwiseGemm wants outputs of each linear in multiples of 64", "--scheme nvfp4",
     {"scheme": "nvfp4"}),
    ("edge-llm", {}, {"kv": "fp8"}, "reads no scales of a KV cache in fp8", "leave out --kv",
     {"kv": None}),
    ("edge-llm", {}, {"scheme": "fp8", "kv": "nvfp4"}, "--kv nvfp4", "--kv fp8", {"kv": "fp8"}),
]  # fmt: skip


@pytest.mark.parametrize(("target", "model", "asked", "problem", "remedy", "follow"), CASES)
def test_refusals(
    headers: Headers,
    target: str,
    model: dict[str, Any],
    asked: dict[str, Any],
    problem: str,
    remedy: str,
    follow: dict[str, Any],
) -> None:
    source, request = headers(**model), Request(**asked)
    with pytest.raises(Refused) as caught:
        target_named(target).plan(source, request)
    reason = next((one for one in caught.value.reasons if problem in one.problem), None)
    assert reason is not None, str(caught.value)
    assert remedy in reason.remedy
    if follow:
        target_named(target).plan(source, replace(request, **follow))


def test_all_of_a_shape_and_a_cache_is_told_at_once(headers: Headers) -> None:
    asked = Request(scheme="fp8-block", kv="fp8", tp=2, own=(("trtllm-compatible", "yes"),))
    source = headers(dtype="F16", num_key_value_heads=1, num_attention_heads=4)
    with pytest.raises(Refused) as caught:
        target_named("trtllm").plan(source, asked)
    told = str(caught.value)
    for words in ("multiples of 128", "the same of 1 heads", "computes in BF16", "KV cache in fp8"):
        assert words in told
    assert all(reason.remedy for reason in caught.value.reasons)


def test_a_float_cache_is_told_beside_a_shape(headers: Headers) -> None:
    layers = (("self_attn.*", "float"), ("down_proj", "w4a8-awq"))
    with pytest.raises(Refused) as caught:
        target_named("trtllm").plan(
            headers(), Request(scheme="w4a8-awq", kv="fp8", hardware="ampere", layers=layers)
        )
    assert len(caught.value.reasons) == 2


@pytest.mark.parametrize("name", ["fp8", "nvfp4"])
def test_repeated_heads_are_no_matter_where_scales_come_along(headers: Headers, name: str) -> None:
    made = target_named("trtllm").plan(headers(), Request(scheme=name, tp=4))
    assert made.tensors
