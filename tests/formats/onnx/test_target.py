"""What is planned, and what is refused, from headers alone."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qconvert.formats.onnx.target import TARGET
from qconvert.formats.refusal import Refused
from qconvert.formats.target import Plan, Request, targets

ENDS = {"eos_token_id": 2, "bos_token_id": 1}


@pytest.fixture
def plan(headers: Callable[..., Any]) -> Callable[..., Plan]:
    """`plan(model_type, request, **config)`"""

    def build(model_type: str = "llama", request: Request | None = None, **own: Any) -> Plan:
        return TARGET.plan(headers(model_type, **{**ENDS, **own}), request or Request())

    return build


def refused(build: Callable[[], object]) -> str:
    with pytest.raises(Refused) as caught:
        build()
    return str(caught.value)


def test_it_is_found() -> None:
    assert targets()["onnx"] is TARGET


def test_all_matrices_are_4_bits_by_default(plan: Callable[..., Plan]) -> None:
    made = plan()
    grids = {one.grid.name for one in made.tensors if one.grid is not None}
    assert grids == {"int4_g32_portable"}
    assert {one.name for one in made.tensors if one.grid is None} >= {"model.norm.weight"}
    outer = [one for one in made.tensors if "embed" in one.name or one.name == "lm_head.weight"]
    assert [one.dtype for one in outer] == ["int4", "int4"]
    assert made.type == "int4"


def test_a_type_and_its_exceptions_can_be_asked_for_again(plan: Callable[..., Plan]) -> None:
    wish = Request(bits=4, group=64, symmetric=False, layers=(("lm_head", "int8"),))
    made = plan(request=wish)
    assert made.type == "int4-g64-asym,lm_head=int8"
    again = plan(request=Request(type=made.type))
    assert [one.dtype for one in again.tensors] == [one.dtype for one in made.tensors]


@pytest.mark.parametrize(
    ("layers", "dtypes", "said"),
    [
        ((), {"model.embed_tokens.weight": "int4"}, ""),
        ((("lm_head", "int8"),), {"model.embed_tokens.weight": "int8"}, "stored once"),
        ((("embed_tokens", "float"),), {"model.embed_tokens.weight": "F32"}, "stored once"),
        (
            (("lm_head", "int8"), ("embed_tokens", "float")),
            {"model.embed_tokens.weight": "F32", "lm_head.weight": "int8"},
            "stored twice",
        ),
    ],
)
def test_a_tied_head(
    plan: Callable[..., Plan], layers: Any, dtypes: dict[str, str], said: str
) -> None:
    made = plan(request=Request(layers=layers), tie_word_embeddings=True)
    outer = {one.name: one.dtype for one in made.tensors
             if "embed" in one.name or "lm_head" in one.name}  # fmt: skip
    assert outer == dtypes
    assert said in " ".join(made.notes)


@pytest.mark.parametrize(
    ("request_", "problem", "remedy"),
    [
        (Request(bits=5), "--bits 5", "--bits 8, --bits 4"),
        (Request(bits=16), "16-bit floats", "float32"),
        (Request(type="Q4_K"), "unknown type 'Q4_K'", "int4"),
        (Request(type="int4-g48"), "no blocks of 48", "--group 32"),
        (Request(group=40), "no blocks of 40", "--group 32"),
        (Request(group=0), "a whole row", "--group 256"),
        (Request(type="int4", bits=8), "contradict", "leave one out"),
        (Request(type="int4-g64", group=32), "contradict", "leave one"),
        (Request(type="float32", group=32), "nothing is quantized", "--group 32"),
        (Request(layers=(("nothing", "int8"),)), "--layer nothing matches no", "down_proj"),
        (Request(layers=(("*", "int8"), ("o_proj", "int4"))), "comes after", "before them"),
        (Request(layers=(("o_proj", "int5"),)), "unknown type 'int5'", "int8"),
    ],
)
def test_requests_that_cannot_be(
    plan: Callable[..., Plan], request_: Request, problem: str, remedy: str
) -> None:
    said = refused(lambda: plan(request=request_))
    assert problem in said
    assert remedy in said


def test_a_group_that_does_not_divide(plan: Callable[..., Plan]) -> None:
    """SmolLM-135M's hidden size."""
    sizes = {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3}
    said = refused(lambda: plan(request=Request(group=128), **sizes))
    assert said.count("groups of 128 do not divide the 576 inputs") == 1
    assert "model.embed_tokens and of 13 other matrices" in said
    assert "--group 64" in said
    assert plan(request=Request(group=64), **sizes).type == "int4-g64"


def test_a_smaller_group_where_the_usual_does_not_divide(plan: Callable[..., Plan]) -> None:
    made = plan(intermediate_size=528)
    down = next(one for one in made.tensors if "down_proj" in one.name)
    assert down.dtype == "int4-g16"
    assert "2 matrices in groups of 16" in " ".join(made.notes)
    said = refused(lambda: plan(intermediate_size=520))
    assert "down_proj=float" in said


def test_models_of_which_no_graph_is_known(plan: Callable[..., Plan]) -> None:
    assert "gpt_neox" in refused(lambda: plan("gpt_neox"))
    sizes = {"n_embd": 256, "n_layer": 2, "n_head": 4, "n_positions": 64}
    said = refused(lambda: plan("gpt2", **sizes, max_position_embeddings=64))
    assert "stored transposed" in said
    assert "--to gguf" in said


@pytest.mark.parametrize(
    ("model_type", "config", "problem"),
    [
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "beta": 2.0}}, "beta"),
        ("llama", {"rope_parameters": {"rope_type": "linear"}}, "factor is None"),
        ("llama", {"hidden_act": "relu"}, "'relu'"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("qwen2", {"use_sliding_window": True, "layer_types": ["x", "y"]}, "layer_types"),
        ("smollm3", {"no_rope_layers": [1]}, "no_rope_layers"),
        ("llama", {"eos_token_id": None}, "eos_token_id"),
        ("llama", {"rms_norm_eps": "1e-6"}, "rms_norm_eps"),
    ],
)
def test_what_no_graph_would_compute(
    plan: Callable[..., Plan], model_type: str, config: dict[str, Any], problem: str
) -> None:
    assert problem in refused(lambda: plan(model_type, **config))


def test_all_reasons_are_told_at_once(plan: Callable[..., Plan]) -> None:
    request = Request(bits=5, group=48)
    said = refused(lambda: plan(request=request, hidden_act="relu", eos_token_id=None))
    assert all(part in said for part in ("--bits 5", "--group 48", "'relu'", "eos_token_id"))


@pytest.mark.parametrize("version", ["1.15.0", "1.9"])
def test_an_onnx_that_is_too_old(
    plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: version)
    said = refused(plan)
    assert version in said
    assert "onnx>=1.16" in said


def test_no_onnx_at_all(plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> str:
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert "not installed" in refused(plan)


def test_long_contexts_are_cut_and_said(plan: Callable[..., Plan]) -> None:
    made = plan(max_position_embeddings=1_000_000)
    assert "131072 of 1000000 positions" in " ".join(made.notes)
    config = json.loads(made.details["onnx"].files["genai_config.json"])
    assert config["model"]["context_length"] == 131072


def test_what_a_form_stores_beyond_the_codes_is_said(plan: Callable[..., Plan]) -> None:
    standard = (("onnx-form", "qdq"),)
    tied = plan(request=Request(own=standard), tie_word_embeddings=True)
    assert sum("is stored twice" in note for note in tied.notes) == 1
    assert not [n for n in plan(tie_word_embeddings=True).notes if "stored" in n]
    assert any(
        "codes of 3 bits are stored in fields of 4" in n for n in plan(request=Request(3)).notes
    )
    assert not [n for n in plan("phi3").notes if "stored" in n]  # one source tensor, two matrices


def test_what_stays_float_is_no_type_of_codes(plan: Callable[..., Plan]) -> None:
    made = plan(request=Request(layers=(("embed_tokens", "float"), ("lm_head", "float"))))
    assert {one.dtype for one in made.tensors if one.grid is None} == {"F32"}


def test_search_defaults_and_ends(headers: Callable[..., Any], tmp_path: Path) -> None:
    source = headers("llama", **ENDS)
    told = {"eos_token_id": [2, 7], "do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 1}
    (source.folder / "generation_config.json").write_text(json.dumps(told), encoding="utf-8")
    files = TARGET.plan(source, Request()).details["onnx"].files
    config = json.loads(files["genai_config.json"])
    assert config["model"]["eos_token_id"] == [2, 7]
    assert config["model"]["pad_token_id"] == 2
    search = config["search"]
    assert (search["do_sample"], search["temperature"], search["top_k"]) == (True, 0.6, 20)
    assert search["past_present_share_buffer"] is True
    assert (search["top_p"], search["repetition_penalty"]) == (1.0, 1.0)
