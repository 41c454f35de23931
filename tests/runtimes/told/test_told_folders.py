"""What is planted into the small files of a folder is found, and named."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qconvert.formats.onnx.tokenizer import BYTE_LEVEL

FOLDER_FAULTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "rope base": ("config.json", {"rope_parameters.rope_theta": 10000.0}, "rope_theta"),
    "older rope base": ("config.json", {"rope_theta": 10000.0}, "rope_theta"),
    "scaling": ("config.json", {"rope_parameters.rope_type": "default", "rope_scaling": None},
                "rope_parameters"),
    "scaling factor": ("config.json", {"rope_parameters.factor": 4.0}, "rope_parameters"),
    "eps": ("config.json", {"rms_norm_eps": 1e-5}, "rms_norm_eps"),
    "eps lost": ("config.json", {"rms_norm_eps": None}, "rms_norm_eps"),
    "heads": ("config.json", {"num_key_value_heads": 4}, "num_key_value_heads"),
    "context": ("config.json", {"max_position_embeddings": 4096}, "max_position_embeddings"),
    "tie": ("config.json", {"tie_word_embeddings": True}, "tie_word_embeddings"),
    "activation": ("config.json", {"hidden_act": "gelu"}, "hidden_act"),
    "bos": ("config.json", {"bos_token_id": 5}, "bos_token_id"),
    "eos": ("config.json", {"eos_token_id": 2}, "eos_token_id"),
    "eos lost": ("config.json", {"eos_token_id": None}, "eos_token_id"),
    "ends of generation": ("generation_config.json", {"eos_token_id": [2]}, "eos_token_id"),
    "temperature": ("generation_config.json", {"temperature": 1.0}, "temperature"),
    "top p lost": ("generation_config.json", {"top_p": None}, "top_p"),
    "add bos": ("tokenizer_config.json", {"add_bos_token": False}, "add_bos_token"),
    "bos token lost": ("tokenizer_config.json", {"bos_token": None}, "bos_token"),
    "template": ("tokenizer_config.json", {"chat_template": "{{ 1 }}"}, "chat_template"),
    "template lost": ("tokenizer_config.json", {"chat_template": None}, "chat_template"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FOLDER_FAULTS)
@pytest.mark.parametrize("target", ["vllm", "trtllm"])
def test_faults_of_a_served_folder(fault: str, target: str, bench: Any) -> None:
    name, fields, culprit = FOLDER_FAULTS[fault]
    path = bench.copy(target)
    bench.edit(path / name, fields)
    assert bench.culprits(path, target)[0] == culprit


LOST = {"generation_config.json": "generation_config", "tokenizer.json": "tokenizer",
        "tokenizer_config.json": "tokenizer_config"}  # fmt: skip


@pytest.mark.parametrize("target", ["vllm", "onnx", "mlc"])
@pytest.mark.parametrize("name", LOST)
def test_files_that_are_lost(name: str, target: str, bench: Any) -> None:
    path = bench.copy(target)
    if not (path / name).exists():
        assert (target, name) == ("mlc", "generation_config.json")
        return
    (path / name).unlink()
    assert LOST[name] in bench.culprits(path, target)


@pytest.mark.parametrize("target", ["vllm", "onnx", "mlc"])
@pytest.mark.parametrize("fault", ["merges", "swapped", "special", "cut"])
def test_faults_of_a_tokenizer_json(fault: str, target: str, bench: Any) -> None:
    path = bench.copy(target)
    content = json.loads((path / "tokenizer.json").read_text("utf-8"))
    if fault == "merges":
        content["model"]["merges"][30:32] = content["model"]["merges"][31:29:-1]
    elif fault == "swapped":
        vocab = content["model"]["vocab"]
        one, other = [text for text, id in vocab.items() if id in (100, 300)]
        vocab[one], vocab[other] = vocab[other], vocab[one]
    elif fault == "special":
        content["added_tokens"][3]["special"] = False
    else:
        content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True}, content["pre_tokenizer"]]}  # fmt: skip
    (path / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    assert bench.culprits(path, target) == ["tokenizer"]


def test_a_tokenizer_spelt_otherwise_is_no_fault(bench: Any) -> None:
    """ByteLevel's own pattern written out, as the ONNX target does, and merges in one string."""
    path = bench.copy("vllm")
    content = json.loads((path / "tokenizer.json").read_text("utf-8"))
    split = {"type": "Split", "pattern": {"Regex": BYTE_LEVEL}, "behavior": "Isolated",
             "invert": False}  # fmt: skip
    plain = {**content["pre_tokenizer"], "use_regex": False}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, plain]}
    content["model"]["merges"] = [" ".join(one) for one in content["model"]["merges"]]
    (path / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    assert bench.found(path, "vllm") == []


LISTS = {"vllm": ("config.json", "quantization_config.ignore", "ignore"),
         "trtllm": ("hf_quant_config.json", "quantization.exclude_modules",
                    "exclude_modules")}  # fmt: skip


@pytest.mark.parametrize("target", LISTS)
@pytest.mark.parametrize("fault", ["missing", "extra"])
def test_the_list_of_floats(fault: str, target: str, bench: Any) -> None:
    path = bench.copy(target)
    name, key, culprit = LISTS[target]
    extra = ["lm_head", "model.layers.0.self_attn.q_proj"]
    bench.edit(path / name, {key: [] if fault == "missing" else extra})
    wrong = bench.found(path, target)
    assert wrong[0].culprit in (culprit, "ignore")
    assert ("lm_head" if fault == "missing" else "q_proj") in wrong[0].problem


def test_two_files_of_modelopt_that_differ(bench: Any) -> None:
    path = bench.copy("trtllm")
    bench.edit(path / "config.json", {"quantization_config.ignore": []})
    (wrong,) = bench.found(path, "trtllm")
    assert wrong.culprit == "exclude_modules"
