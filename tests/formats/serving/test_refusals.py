"""Everything that is refused, from headers, with a remedy that works when it is followed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from qconvert.formats.refusal import Refused
from qconvert.formats.source import Source
from qconvert.formats.target import Plan, Request, target_named

Headers = Callable[..., Source]


def plan(source: Source, target: str, request: Request) -> Plan:
    return target_named(target).plan(source, request)


def refused(source: Source, target: str, request: Request) -> Refused:
    with pytest.raises(Refused) as caught:
        plan(source, target, request)
    return caught.value


CASES: list[tuple[str, dict[str, Any], dict[str, Any], str, str]] = [
    # target, model, request, what is wrong, what would work
    ("vllm", {}, {"bits": 3}, "--bits 3: no serving program takes it", "--bits 4"),
    ("vllm", {}, {"bits": 7}, "readers disagree", "--bits 8"),
    ("vllm", {}, {"bits": 2}, "no usual kernel", "--bits 4"),
    ("vllm", {}, {"type": "Q4_K_M"}, "unknown type 'Q4_K_M'", "w4a16"),
    ("vllm", {}, {"scheme": "w4a8"}, "unknown type 'w4a8'", "w8a8"),
    ("vllm", {}, {"scheme": "w8a8", "bits": 4}, "contradict each other", "leave out --bits 4"),
    ("vllm", {}, {"type": "f32", "bits": 16}, "contradict each other", "leave out --bits 16"),
    ("vllm", {}, {"type": "w4a16-g64", "group": 32}, "contradict", "leave one of them out"),
    ("vllm", {}, {"type": "w4a16-g64", "symmetric": False}, "--asymmetric contradict", "leave one"),
    ("vllm", {}, {"type": "fp8-tensor", "scheme": "fp8-block"}, "contradict", "leave one"),
    ("vllm", {}, {"type": "bf16", "group": 64}, "--group 64: nothing is quantized", "leave out"),
    ("vllm", {}, {"type": "bf16", "container": "gptq"}, "nothing is quantized", "leave out --cont"),
    ("vllm", {}, {"scheme": "w4a16", "container": "modelopt"},
     "nowhere in the modelopt container: no kernel takes w4a16-g128",
     "--container compressed-tensors"),
    ("vllm", {}, {"group": 48}, "--group 48: w4a16 is computed with 128, 64", "--group 64"),
    ("vllm", {}, {"group": 16}, "--group 16", "--group 32"),
    ("vllm", {}, {"scheme": "fp8-block", "group": 64}, "--group 64: fp8-block", "--group 128"),
    ("vllm", {}, {"scheme": "w8a8", "symmetric": False}, "no zero points", "w4a16 or w8a16"),
    ("vllm", {}, {"static": True}, "w4a16 has no fixed activation scales", "--scheme w8a8 or fp8"),
    ("vllm", {"hidden_size": 192, "num_attention_heads": 3}, {"group": 128},
     "groups of 128 do not divide the 192 inputs of model.layers.0.self_attn.q_proj, k_proj",
     "--group 64 or --group 32 or --group channel"),
    ("vllm", {"hidden_size": 240, "head_dim": 60}, {}, "groups of 32 do not divide the 240 inputs",
     "--group channel"),
    ("vllm", {"hidden_size": 192, "num_attention_heads": 3}, {"scheme": "fp8-block"},
     "groups of 128 do not divide the 192 inputs", "--scheme fp8"),
    ("vllm", {"hidden_size": 240, "head_dim": 60}, {"scheme": "mxfp4"},
     "groups of 32 do not divide the 240 inputs", "--scheme nvfp4"),
    ("vllm", {}, {"group": 128, "tp": 4}, "the 64 inputs of model.layers.0.self_attn.o_proj of each"
     " of its shards (K = 256)", "--group 64"),
    ("vllm", {}, {"tp": 3}, "--tp 3 does not divide the 4 heads", "number of ranks"),
    ("vllm", {"intermediate_size": 520}, {"tp": 16, "group": 0},
     "--tp 16 does not divide the 4 heads", "leave --tp out"),
    ("vllm", {}, {"tp": 0}, "--tp 0 is not a number of ranks", "--tp 1"),
    ("vllm", {}, {"container": "gguf"}, "--container gguf: vllm", "--container compressed-tensors"),
    ("vllm", {}, {"container": "gptq", "symmetric": False}, "never read its zero points",
     "--container awq"),
    ("vllm", {}, {"container": "gptq", "scheme": "fp8"}, "fp8", "--container compressed-tensors"),
    ("vllm", {}, {"container": "awq", "scheme": "w8a16"}, "w8a16-g128",
     "--container compressed-tensors"),
    ("vllm", {}, {"container": "awq", "layers": (("down_proj", "w4a16-g64"),)}, "holds one scheme",
     "--container compressed-tensors"),
    ("vllm", {}, {"container": "awq", "kv": "fp8"}, "no place for scales of a KV cache",
     "--container compressed-tensors"),
    ("vllm", {}, {"kv": "int8"}, "--kv int8", "--kv fp8"),
    ("vllm", {}, {"hardware": "abacus"}, "unknown hardware 'abacus'", "cpu (x86"),
    ("vllm", {}, {"hardware": "cpu", "scheme": "w8a16"}, "vllm on cpu: no kernel there takes"
     " w8a16-g128", "--scheme w8a8; or leave out --hardware: it runs on turing and later"),
    ("vllm", {}, {"hardware": "cpu", "type": "fp8-tensor"}, "fp8-tensor", "--scheme fp8"),
    ("vllm", {}, {"hardware": "cpu", "scheme": "nvfp4"}, "nvfp4", "--scheme w4a16 --group 32"),
    ("vllm", {}, {"hardware": "blackwell", "scheme": "w8a8"}, "w8a8", "--scheme fp8"),
    ("vllm", {}, {"hardware": "turing", "scheme": "mxfp4"}, "mxfp4", "--scheme w4a16 --group 32"),
    ("vllm", {}, {"hardware": "ada", "type": "w8a16-g64-asym"}, "w8a16-g64-asym",
     "--scheme w8a16 --group 64"),
    ("vllm", {"intermediate_size": 528}, {"hardware": "cpu", "group": 0},
     "CPUWNA16 wants inputs in multiples of 32; model.layers.0.mlp.down_proj has 528",
     "--scheme w8a8"),
    ("vllm", {"intermediate_size": 520, "hidden_size": 256}, {"hardware": "cpu", "group": 0},
     "CPUWNA16 wants outputs in multiples of 32; model.layers.0.mlp.gate_proj and up_proj has 1040",
     "--scheme w8a8"),
    ("vllm", {}, {"type": "w8a16-g32-asym"}, "runs this nowhere", "--scheme w8a16 --group 64"),
    ("vllm", {"intermediate_size": 640, "num_key_value_heads": 1}, {"scheme": "fp8-block"},
     "FP8 wants outputs of each linear in multiples of 128; model.layers.0.self_attn.q_proj,"
     " k_proj and v_proj has 64", "--scheme fp8"),
    ("vllm", {}, {"layers": (("q_proj", "float"),)}, "q_proj, k_proj and v_proj and 1 more like it"
     " would differ (q_proj: float, k_proj: w4a16-g128",
     "--layer q_proj=float --layer k_proj=float --layer v_proj=float"),
    ("vllm", {}, {"layers": (("*.gate_proj", "w8a16"),)}, "would differ (gate_proj: w8a16-g128",
     "--layer gate_proj=w8a16-g128 --layer up_proj=w8a16-g128"),
    ("vllm", {}, {"layers": (("lm_head", "w8a16"),)}, "the head stays float always", "*.down_proj"),
    ("vllm", {}, {"layers": (("*embed*", "w8a16"),)}, "the embedding stays float", "*.down_proj"),
    ("vllm", {}, {"layers": (("experts", "w8a16"),)}, "matches no linear", "q_proj, k_proj"),
    ("vllm", {}, {"layers": (("*_proj", "w8a16"), ("down_proj", "float"))}, "comes after others",
     "put it before them"),
    ("vllm", {}, {"layers": (("down_proj", "f16"),)}, "one float type", "=float"),
    ("vllm", {}, {"layers": (("down_proj", "w9"),)}, "unknown type 'w9'", "w8a8"),
    ("vllm", {}, {"type": "w4a16,down_proj"}, ",PATTERN=SCHEME", "for example"),
    ("vllm", {"model_type": "gpt2"}, {}, "stored transposed (Conv1D of gpt2)", "--to gguf"),
    ("sglang", {"model_type": "gpt_neox"}, {}, "not known to serve models of type gpt_neox",
     "--to gguf"),
    ("sglang", {}, {"hardware": "cpu"}, "sglang on cpu", "it runs on turing and later"),
    ("sglang", {}, {"scheme": "mxfp4"}, "sglang runs this nowhere", "--scheme w4a16 --group 32"),
    ("lightllm", {"model_type": "phi3"}, {}, "not known to serve models of type phi3", "llama"),
    ("lightllm", {}, {"container": "gptq"}, "--container gptq: lightllm", "--container awq"),
    ("lightllm", {}, {"scheme": "w8a8"}, "lightllm reads no w8a8 (it reads awq, fp8)",
     "--scheme fp8-block"),
    ("lightllm", {}, {"group": 0}, "runs this nowhere", "--scheme w4a16 --group 128 --asymmetric"),
    ("lightllm", {"hidden_size": 192, "num_attention_heads": 3}, {"group": 128},
     "groups of 128", "--group 64 or --group 32"),
    ("lightllm", {"model_type": "qwen2"}, {"scheme": "fp8-block"},
     "loses biases, and model.layers.0.self_attn.q_proj has one", "--scheme w4a16"),
    ("lightllm", {"intermediate_size": 1152}, {"scheme": "fp8-block", "tp": 2},
     "groups of 128 do not divide the 576 inputs of model.layers.0.mlp.down_proj",
     "--scheme w4a16"),
    ("lightllm", {}, {"layers": (("k_proj", "float"),)}, "k_proj and v_proj and 1 more like it",
     "--layer v_proj=float"),
    ("lightllm", {}, {"layers": (("down_proj", "fp8-block"),)}, "no container that lightllm reads"
     " holds", "one scheme for all"),
]  # fmt: skip


@pytest.mark.parametrize(("target", "model", "asked", "problem", "remedy"), CASES)
def test_refusals(
    headers: Headers,
    target: str,
    model: dict[str, Any],
    asked: dict[str, Any],
    problem: str,
    remedy: str,
) -> None:
    source, request = headers(**model), Request(**asked)
    told = refused(source, target, request)
    assert problem in str(told)
    reason = next(one for one in told.reasons if problem in one.problem)
    assert remedy in reason.remedy
    followed = following(request, reason.remedy)
    if followed is not None:
        plan(source, target, followed)


def following(request: Request, remedy: str) -> Request | None:
    """The request as the first part of `remedy` would have it, where that is made of options."""
    first = re.split(r" or |;|,", remedy)[0].strip()
    if not first.startswith("--") or "--to" in first or "=" in first:
        return None
    words = first.split()
    given = dict(zip(words, [*words[1:], ""], strict=True))
    if "--scheme" in given:
        group = given.get("--group")
        return replace(
            request, bits=None, type=None, scheme=given["--scheme"],
            group=None if group is None else 0 if group == "channel" else int(group),
            symmetric=False if "--asymmetric" in given else None,
            static="--static" in given or None,
        )  # fmt: skip
    changes: dict[str, Any] = {}
    for name in ("bits", "tp"):
        if f"--{name}" in given:
            changes[name] = int(given[f"--{name}"])
    for name in ("container", "kv"):
        if f"--{name}" in given:
            changes[name] = given[f"--{name}"]
    if "--group" in given:
        changes["group"] = 0 if given["--group"] == "channel" else int(given["--group"])
    return replace(request, **changes)


def test_remedies_are_followed(headers: Headers) -> None:
    request = Request(type="x", static=True)
    assert following(request, "--scheme w4a16 --group 64 --asymmetric; or leave") == Request(
        scheme="w4a16", group=64, symmetric=False
    )
    assert following(request, "leave it out") is None


def test_all_reasons_are_told_at_once(headers: Headers) -> None:
    asked = Request(scheme="w5a5", container="zip", hardware="abacus", kv="fp4", tp=0)
    told = str(refused(headers("gpt2"), "vllm", asked))
    for word in ("w5a5", "zip", "abacus", "fp4", "--tp 0", "Conv1D"):
        assert word in told
