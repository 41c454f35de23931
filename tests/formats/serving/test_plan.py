"""What is planned for folders that serving programs read: from headers, no weight is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from qconvert.formats.refusal import Refused
from qconvert.formats.serving.container import FolderPlan
from qconvert.formats.serving.schemes import FAMILIES, members, scheme_named, schemes
from qconvert.formats.source import Source
from qconvert.formats.target import OutputTensor, Plan, Request, target_named

Headers = Callable[..., Source]
TARGETS = ("vllm", "sglang", "lightllm")
SOMEWHERE = [name for name in schemes() if name not in {"w8a16-g32-asym", "w4a8-fp8-g128"}]
"""Schemes that a kernel of vLLM takes: Marlin has no zero points of 8 bits, Machete no groups of
32; 4 bits under FP8 activations are TensorRT-LLM's."""


def plan(source: Source, target: str = "vllm", **asked: Any) -> Plan:
    return target_named(target).plan(source, Request(**asked))


def folder(made: Plan) -> FolderPlan:
    found = made.details["folder"]
    assert isinstance(found, FolderPlan)
    return found


def config(made: Plan) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(folder(made).files["config.json"])
    return found


def quantized(made: Plan) -> list[OutputTensor]:
    return [one for one in made.tensors if one.grid is not None]


def test_every_linear_of_the_blocks_is_quantized_and_nothing_else(headers: Headers) -> None:
    source = headers()
    made = plan(source)
    wanted = {t.name for t in source.tensors if t.block is not None and len(t.shape) == 2}
    assert {one.name for one in quantized(made)} == wanted
    assert {one.dtype for one in made.tensors} == {"w4a16-g128", "BF16"}
    assert [one.name for one in made.tensors] == [one.name for one in source.tensors]
    assert config(made)["quantization_config"]["ignore"] == ["lm_head"]


@pytest.mark.parametrize(
    ("hidden", "ffn", "group"), [(256, 512, 128), (192, 512, 64), (256, 544, 32)]
)
def test_the_group_is_the_largest_that_divides_all_inputs(
    headers: Headers, hidden: int, ffn: int, group: int
) -> None:
    made = plan(headers(hidden_size=hidden, intermediate_size=ffn))
    assert made.type == f"w4a16-g{group}"
    assert (f"groups of {group}: 128 do not divide" in "".join(made.notes)) == (group != 128)


def test_the_group_divides_the_inputs_of_every_rank(headers: Headers) -> None:
    source = headers(intermediate_size=512)
    assert plan(source, tp=2).type == "w4a16-g128"
    assert plan(source, tp=4).type == "w4a16-g64"  # 256 inputs of o_proj make four times 64


@pytest.mark.parametrize(
    ("target", "bits", "type_"),
    [
        ("vllm", None, "w4a16-g128"), ("vllm", 4, "w4a16-g128"), ("vllm", 8, "w8a8"),
        ("vllm", 16, "bf16"), ("sglang", 8, "w8a8"), ("lightllm", None, "w4a16-g128-asym"),
        ("lightllm", 8, "fp8-block"), ("lightllm", 16, "bf16"), ("trtllm", None, "w4a16-g128"),
        ("trtllm", 8, "fp8-tensor"), ("trtllm", 16, "bf16"), ("edge-llm", 4, "w4a16-g128"),
        ("edge-llm", 8, "fp8-tensor"),
    ],
)  # fmt: skip
def test_what_bits_mean(headers: Headers, target: str, bits: int | None, type_: str) -> None:
    assert plan(headers(), target, bits=bits).type == type_


@pytest.mark.parametrize(
    ("asked", "type_"),
    [
        ({"scheme": "w4a16", "symmetric": False}, "w4a16-g128-asym"),
        ({"symmetric": False, "group": 32}, "w4a16-g32-asym"),
        ({"scheme": "w8a16", "group": 0}, "w8a16-channel"),
        ({"scheme": "w8a8", "static": True}, "w8a8-static"),
        ({"bits": 8, "static": True}, "w8a8-static"),
        ({"scheme": "fp8", "static": True}, "fp8-tensor"),
        ({"type": "W8A8-Static", "bits": 8}, "w8a8-static"),
        ({"type": "w4a16"}, "w4a16-g128"),
        ({"type": "w4a16-g64", "scheme": "w4a16", "group": 64}, "w4a16-g64"),
        ({"type": "BF16", "bits": 16}, "bf16"),
    ],
)  # fmt: skip
def test_refinements_lead_to_one_scheme(
    headers: Headers, asked: dict[str, Any], type_: str
) -> None:
    assert plan(headers(), **asked).type == type_


@pytest.mark.parametrize("target", [*TARGETS, "trtllm", "edge-llm"])
def test_every_type_listed_can_be_planned(headers: Headers, target: str) -> None:
    """A program's own names stand for schemes; all others are those of schemes."""
    own = getattr(target_named(target), "names", {})
    listed = target_named(target).types
    assert len(dict(listed)) == len(listed)
    for name, line in listed:
        made = plan(headers(), target, type=name)
        assert made.type == name or (name in own and made.type in dict(listed))
        assert line
        assert {one.dtype for one in quantized(made)} <= {made.type}


@pytest.mark.parametrize("target", TARGETS)
def test_no_other_program_takes_integers_of_modelopt(headers: Headers, target: str) -> None:
    for name in ("w4a16-g128", "w8a16-channel", "w8a8-static"):
        with pytest.raises(Refused):
            plan(headers(), target, type=name, container="modelopt")


def test_names_of_schemes_are_their_own() -> None:
    listed = [one for family in FAMILIES.values() for one in members(family)]
    assert len({one.name for one in listed}) == len(listed)
    assert len({replace(one, name="") for one in listed}) == len(listed)
    assert all(scheme_named(one.name) == one for one in listed)
    assert all(one.grid.name == one.grid_name for one in schemes().values())


def test_exceptions_by_name_the_first_that_matches_wins(headers: Headers) -> None:
    layers = (("layers.0.mlp.down_proj", "float"), ("*.down_proj", "w8a16"), ("1.self_attn.*",
              "w4a16-g32"))  # fmt: skip
    made = plan(headers(), layers=layers)
    kinds = {one.name.removeprefix("model.layers."): one.dtype for one in made.tensors}
    assert kinds["0.mlp.down_proj.weight"] == "BF16"
    assert kinds["1.mlp.down_proj.weight"] == "w8a16-g128"
    assert kinds["1.self_attn.o_proj.weight"] == "w4a16-g32"
    assert kinds["0.self_attn.o_proj.weight"] == "w4a16-g128"
    assert "model.layers.0.mlp.down_proj" in config(made)["quantization_config"]["ignore"]
    again = plan(headers(), type=made.type)
    assert (again.type, again.tensors) == (made.type, made.tensors)
    assert made.default_name == "tiny-llama-w4a16-g128-mixed"


def test_few_layers_may_be_quantized_of_a_float_model(headers: Headers) -> None:
    made = plan(headers(), type="bf16", layers=(("*.down_proj", "w8a8"),))
    assert {one.name.split(".")[-2] for one in quantized(made)} == {"down_proj"}
    assert plan(headers(), type=made.type).tensors == made.tensors


@pytest.mark.parametrize(
    ("name", "rounding"),
    [
        ("w4a16-g128", None), ("nvfp4a16", None), ("mxfp4", None), ("w8a8", ("int8", 0)),
        ("w8a8-static", ("int8", -1)), ("fp8-channel", ("fp8", 0)), ("fp8-tensor", ("fp8", -1)),
        ("fp8-block", ("fp8", 128)), ("nvfp4", ("fp4", 16)),
    ],
)  # fmt: skip
def test_the_rounding_of_inputs_is_told(
    headers: Headers, name: str, rounding: tuple[str, int] | None
) -> None:
    for one in plan(headers(), type=name).tensors:
        told = one.input_rounding and (one.input_rounding.kind, one.input_rounding.per)
        assert told == (rounding if one.grid is not None else None)


@pytest.mark.parametrize("name", ["fp8-tensor", "nvfp4", "nvfp4a16"])
def test_joined_linears_share_one_scale(headers: Headers, name: str) -> None:
    shares = {one.name.split(".")[-2]: one.shares for one in quantized(plan(headers(), type=name))}
    assert len(shares["q_proj"]) == 3
    assert shares["q_proj"] == shares["k_proj"] == shares["v_proj"]
    assert len(shares["gate_proj"]) == 2
    assert shares["gate_proj"] == shares["up_proj"]
    assert [len(shares[one]) for one in ("o_proj", "down_proj")] == [1, 1]


@pytest.mark.parametrize("name", ["w4a16-g128", "w8a8-static", "fp8-channel", "fp8-block", "mxfp4"])
def test_scales_of_rows_and_groups_are_not_shared(headers: Headers, name: str) -> None:
    assert not any(one.shares for one in plan(headers(), type=name).tensors)


@pytest.mark.parametrize("name", ["w8a8-static", "fp8-tensor", "nvfp4"])
def test_measured_numbers_follow_their_linear(headers: Headers, name: str) -> None:
    made = plan(headers(), type=name)
    for at, one in enumerate(made.tensors):
        if one.grid is None:
            continue
        number = made.tensors[at + 1]
        assert number.statistic is not None
        assert (number.statistic.kind, number.statistic.tensor) == ("input", one.name)
        assert number.name.rpartition(".")[0] == one.name.rpartition(".")[0]
        assert number.nbytes == 4


def test_scales_of_the_cache_come_after_the_values(headers: Headers) -> None:
    made = plan(headers(), kv="fp8")
    numbers = [one for one in made.tensors if one.statistic is not None]
    assert [one.statistic.kind for one in numbers if one.statistic] == ["key", "value"] * 2
    names = [one.name for one in made.tensors]
    at = names.index("model.layers.0.self_attn.v_proj.weight")
    assert names[at + 1 : at + 3] == [one.name for one in numbers[:2]]
    assert config(made)["quantization_config"]["kv_cache_scheme"]["num_bits"] == 8


def test_a_cache_can_be_scaled_of_a_float_model(headers: Headers) -> None:
    made = plan(headers(), type="bf16", kv="fp8")
    assert quantized(made) == []
    assert sum(one.statistic is not None for one in made.tensors) == 4
    assert config(made)["quantization_config"]["kv_cache_scheme"] is not None


def test_biases_stay(headers: Headers) -> None:
    made = plan(headers("qwen2"))
    biases = [one for one in made.tensors if one.name.endswith(".bias")]
    assert len(biases) == 6
    assert all(one.dtype == "BF16" and one.source for one in biases)


def test_a_tied_head_stays_tied(headers: Headers) -> None:
    tied, free = plan(headers(tie_word_embeddings=True)), plan(headers())
    assert "lm_head.weight" not in {one.name for one in tied.tensors}
    assert config(tied)["tie_word_embeddings"] is True
    assert config(tied)["quantization_config"]["ignore"] == ["lm_head"]
    assert "lm_head.weight" in {one.name for one in free.tensors}
    assert config(free)["tie_word_embeddings"] is False


def test_the_configuration_is_that_of_the_text_model(headers: Headers) -> None:
    source = headers(
        "gemma3_text", architectures=["Gemma3ForConditionalGeneration"], 
        torch_dtype="float32", rope_parameters={"rope_type": "default", "rope_theta": 5e5},
        _name_or_path="somewhere",
    )  # fmt: skip
    made = config(plan(source))
    assert made["architectures"] == ["Gemma3ForCausalLM"]
    assert made["model_type"] == "gemma3_text"
    assert made["dtype"] == made["torch_dtype"] == "bfloat16"
    assert made["rope_theta"] == 5e5
    assert "_name_or_path" not in made


@pytest.mark.parametrize(
    ("dtype", "type_", "stored"),
    [("F32", None, "BF16"), ("F16", None, "F16"), ("F32", "f32", "F32"), ("BF16", "f16", "F16")],
)
def test_floats_are_stored_in_one_type(
    headers: Headers, dtype: str, type_: str | None, stored: str
) -> None:
    made = plan(headers(dtype=dtype), type=type_)
    assert {one.dtype for one in made.tensors if one.grid is None} == {stored}


def test_tokenizer_and_chat_template_come_along(headers: Headers) -> None:
    files = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
             "generation_config.json", "README.md", "training_args.bin")  # fmt: skip
    made = plan(headers(files=files))
    assert set(folder(made).copies) == set(files) - {"README.md", "training_args.bin"}
    assert not any("tokenizer" in note for note in made.notes)
    bare = plan(headers("mistral"))
    assert any("no tokenizer" in note for note in bare.notes)


def test_sizes_are_those_of_the_entries(headers: Headers) -> None:
    for name in SOMEWHERE:
        made = plan(headers(), type=name)
        for one in made.tensors:
            assert one.nbytes == sum(entry.nbytes for entry in folder(made).entries[one.name])


CPU = {"w4a16-g128", "w4a16-g64", "w4a16-g32", "w4a16-channel", "w4a16-g128-asym",
       "w4a16-g64-asym", "w4a16-g32-asym", "w4a16-channel-asym", "w8a8", "w8a8-static",
       "fp8-channel"}  # fmt: skip


@pytest.mark.parametrize("name", SOMEWHERE)
def test_where_a_scheme_runs(headers: Headers, name: str) -> None:
    """The CPU's column was found by running vLLM, and is in the documents."""
    made = plan(headers(), type=name)
    mark = json.loads(folder(made).files["qconvert.json"])
    assert ("cpu" in mark["runs_on"]) == (name in CPU)
    assert "hopper" in mark["runs_on"]
    assert ("not on cpu" in made.details["about"]["runs on"]) == (name not in CPU)


def test_a_shape_may_keep_it_from_some_hardware(headers: Headers) -> None:
    made = plan(headers(intermediate_size=528, num_hidden_layers=1), group=0)
    assert "not on cpu: CPUWNA16 wants" in "".join(made.notes)
    assert made.details["about"]["runs on"] == "turing and later; not on cpu"


def test_the_container_is_one_that_runs(headers: Headers) -> None:
    def held(target: str, **asked: Any) -> str:
        container = folder(plan(headers(), target, **asked)).container
        assert container is not None
        return container.name

    assert held("vllm") == "compressed-tensors"
    assert held("vllm", container="gptq") == "gptq"
    assert held("sglang", symmetric=False) == "awq"
    assert held("sglang", scheme="nvfp4") == "modelopt"
    assert held("vllm", scheme="w8a16", group=0) == "compressed-tensors"
    assert held("trtllm") == held("edge-llm") == "modelopt"
    assert held("lightllm") == "awq"
    assert held("lightllm", scheme="fp8-block") == "fp8"


def test_lightllm_is_told_what_stays_float(headers: Headers) -> None:
    layers = (("0.self_attn.[kv]_proj", "float"), ("gate_proj", "float"), ("up_proj", "float"))
    made = plan(headers(), "lightllm", layers=layers)
    assert folder(made).files["quant_cfg.yml"].decode() == (
        "quant_type: none\nmix_bits:\n"
        "  - name: kv_proj\n    quant_type: none\n    layer_nums: [0]\n"
        "  - name: gate_up_proj\n    quant_type: none\n"
    )
    assert "--quant_cfg {folder}/quant_cfg.yml" in made.details["about"]["serve"]
    assert any("--quant_cfg DIR/quant_cfg.yml" in note for note in made.notes)
    assert "quant_cfg.yml" not in folder(plan(headers(), "lightllm")).files


def test_lightllm_keeps_scales_of_the_cache_beside_the_weights(headers: Headers) -> None:
    made = plan(headers(), "lightllm", kv="fp8")
    numbers = [one for one in made.tensors if one.statistic is not None]
    assert len(numbers) == 4
    assert all(folder(made).entries[one.name] == () and one.nbytes == 0 for one in numbers)
    values = {one.name: 0.25 * at for at, one in enumerate(numbers, 1)}
    told = json.loads(folder(made).made["kv_cache.json"](values))
    assert told["scales"] == [[0.25, 0.5], [0.75, 1.0]]
    assert told["scales_shape"] == [2, 2]
    assert (told["num_layers"], told["num_head"]) == (2, 2)
    assert (told["qmin"], told["qmax"], told["quant_type"]) == (-448.0, 448.0, "per_tensor")
    assert told["architectures"] == config(made)["architectures"][0]


def test_sglang_gets_the_folder_of_vllm(headers: Headers) -> None:
    one, other = plan(headers()), plan(headers(), "sglang")
    assert one.tensors == other.tensors
    mine, theirs = dict(folder(one).files), dict(folder(other).files)
    assert json.loads(mine.pop("qconvert.json"))["target"] == "vllm"
    assert json.loads(theirs.pop("qconvert.json"))["target"] == "sglang"
    assert mine == theirs
    assert any("--to vllm" in note for note in other.notes)
