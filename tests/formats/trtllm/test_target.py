"""What is planned for TensorRT-LLM and TensorRT Edge-LLM, and how folders are known again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qconvert.formats.serving.base import ServingTarget
from qconvert.formats.serving.capability import EDGE_LLM, TRTLLM
from qconvert.formats.serving.container import FolderPlan
from qconvert.formats.serving.kernel import GPUS
from qconvert.formats.source import Source
from qconvert.formats.target import OutputTensor, Plan, Request, target_named, targets

Headers = Callable[..., Source]


def target(name: str = "trtllm") -> ServingTarget:
    found = target_named(name)
    assert isinstance(found, ServingTarget)
    return found


def plan(source: Source, name: str = "trtllm", **asked: Any) -> Plan:
    return target(name).plan(source, Request(**asked))


def folder(made: Plan) -> FolderPlan:
    found = made.details["folder"]
    assert isinstance(found, FolderPlan)
    return found


def quantized(made: Plan) -> list[OutputTensor]:
    return [one for one in made.tensors if one.grid is not None]


def nested(made: Plan) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(folder(made).files["hf_quant_config.json"])
    return found["quantization"]


@pytest.mark.parametrize(
    ("scheme", "type_", "algorithm", "places"),
    [
        ("w4a16-awq", "w4a16-g128", "W4A16_AWQ", ["ampere", "ada", "hopper"]),
        ("w4a8-awq", "w4a8-fp8-g128", "W4A8_AWQ", ["ada", "hopper"]),
        ("fp8", "fp8-tensor", "FP8", ["ada", "hopper", "blackwell"]),
        ("fp8-channel", "fp8-channel", "FP8_PER_CHANNEL_PER_TOKEN", ["hopper"]),
        ("fp8-block", "fp8-block", "fp8_pb_wo", ["hopper", "blackwell"]),
        ("nvfp4", "nvfp4", "NVFP4", ["blackwell"]),
        ("nvfp4a16", "nvfp4a16", "W4A16_NVFP4", ["hopper", "blackwell"]),
        ("w8a16", "w8a16-channel", "W8A16", ["ampere", "ada", "hopper"]),
        ("w4a16", "w4a16-channel", "W4A16", ["ampere", "ada", "hopper"]),
    ],
)
def test_the_schemes_of_nvidia(
    headers: Headers, scheme: str, type_: str, algorithm: str, places: list[str]
) -> None:
    made = plan(headers(), scheme=scheme)
    assert made.type == type_
    assert {one.dtype for one in quantized(made)} == {type_}
    assert nested(made)["quant_algo"] == algorithm
    assert json.loads(folder(made).files["qconvert.json"])["runs_on"] == places
    assert any("not run" in note for note in made.notes)
    assert made.details["about"]["serve"] == "trtllm-serve {folder}"
    assert plan(headers(), type=made.type).tensors == made.tensors


def test_summaries_say_what_was_run() -> None:
    assert "was not run" in target().summary
    assert "not run" in target("edge-llm").summary


@pytest.mark.parametrize(
    ("hidden", "ffn", "group"), [(256, 512, 128), (192, 512, 64), (320, 640, 64)]
)
def test_groups_are_128_or_64(headers: Headers, hidden: int, ffn: int, group: int) -> None:
    source = headers(hidden_size=hidden, intermediate_size=ffn, head_dim=64)
    made = plan(source, scheme="w4a16-awq")
    assert made.type == f"w4a16-g{group}"
    assert nested(made)["group_size"] == group
    config = json.loads(folder(made).files["config.json"])
    assert config["quantization_config"]["group_size"] == group


def test_groups_divide_every_shard(headers: Headers) -> None:
    assert plan(headers(num_key_value_heads=4), tp=4).type == "w4a16-g64"


@pytest.mark.parametrize("kv", ["fp8", "nvfp4"])
@pytest.mark.parametrize("scheme", ["fp8", "nvfp4"])
def test_caches_beside_methods_that_read_their_scales(
    headers: Headers, scheme: str, kv: str
) -> None:
    made = plan(headers(), scheme=scheme, kv=kv)
    kinds = [one.statistic.kind for one in made.tensors if one.statistic is not None]
    assert (kinds.count("key"), kinds.count("value")) == (2, 2)
    assert nested(made)["kv_cache_quant_algo"] == kv.upper()
    assert any("a scale of 1" in note for note in made.notes) == (kv == "fp8")


def test_a_cache_beside_attention_in_fp8_and_the_rest_in_4_bits(headers: Headers) -> None:
    made = plan(headers(), scheme="w4a16-awq", layers=(("self_attn.*", "fp8"),), kv="fp8")
    assert nested(made)["quant_algo"] == "MIXED_PRECISION"
    assert {one.dtype for one in quantized(made)} == {"w4a16-g128", "fp8-tensor"}


def test_own_names_serve_single_layers(headers: Headers) -> None:
    layers = (("*.down_proj", "w4a16-awq"), ("o_proj", "float"))
    made = plan(headers(), scheme="fp8", layers=layers)
    weights = [one for one in made.tensors if one.name.endswith(".weight")]
    kinds = {one.name.split(".")[-2]: one.dtype for one in weights}
    assert (kinds["down_proj"], kinds["o_proj"]) == ("w4a16-g128", "BF16")
    assert made.type == "fp8-tensor,*.down_proj=w4a16-g128,o_proj=float"


def test_column_scales_are_those_that_the_loader_asks_for(headers: Headers) -> None:
    made = plan(headers(), scheme="w4a16-awq")
    held = {one.name.split(".")[-2] for one in made.tensors if one.column_scale}
    assert held == {"o_proj", "down_proj"}


def test_lost_biases_are_told(headers: Headers) -> None:
    def told(model: str, scheme: str) -> bool:
        return any("biases" in note for note in plan(headers(model), scheme=scheme).notes)

    assert told("qwen2", "w8a16")
    assert not told("qwen2", "w4a16-awq")
    assert not told("llama", "w8a16")


def test_vllm_reads_one_scheme_of_it() -> None:
    assert target().also == ("vllm",)
    assert target().also_schemes == {"fp8-channel"}


@pytest.mark.parametrize("model", ["llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi3"])
def test_architectures(headers: Headers, model: str) -> None:
    assert plan(headers(model), scheme="fp8").type == "fp8-tensor"


def test_edge_llm_is_told_not_to_round_activations(headers: Headers) -> None:
    """Of a dense model it takes W4A16_NVFP4 for NVFP4."""
    flag = "--no-quantize-activations"
    made = plan(headers(), "edge-llm", scheme="nvfp4a16")
    assert made.details["about"]["serve"].endswith(flag)
    assert any(flag in note for note in made.notes)
    assert flag not in plan(headers(), "edge-llm", scheme="nvfp4").details["about"]["serve"]


def test_edge_llm_takes_smoothquant(headers: Headers) -> None:
    made = plan(headers(), "edge-llm", scheme="w8a8-sq")
    assert made.type == "w8a8-static"
    assert nested(made)["quant_algo"] == "W8A8_SQ_PER_CHANNEL"
    held = [one for one in made.tensors if one.column_scale]
    assert len(held) == len(quantized(made))


def test_kernels_are_of_gpus_and_of_modelopts_form() -> None:
    for one in (*TRTLLM, *EDGE_LLM):
        assert one.where <= set(GPUS)
        assert one.symmetric == (True,)


def test_folders_of_others_in_this_form_are_its_own(written: Any, tmp_path: Path) -> None:
    """Those of ModelOpt have no mark of ours, and are what TensorRT-LLM is given."""
    copy = Path(shutil.copytree(written("w4a16-awq"), tmp_path / "of-others"))
    (copy / "qconvert.json").unlink()
    known = targets()
    assert [name for name, one in known.items() if one.recognises(copy)] == ["trtllm"]


def test_outputs_do_not_have_the_names_of_vllms(headers: Headers) -> None:
    names = [plan(headers(), name).default_name for name in ("trtllm", "edge-llm", "vllm")]
    assert names == [f"tiny-llama-w4a16-g128{end}" for end in ("-trtllm", "-edge-llm", "")]
