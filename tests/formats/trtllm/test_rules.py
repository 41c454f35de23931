"""Our restatement of TensorRT-LLM's loader rules: nothing of ours breaks one, each fault does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qconvert.formats.trtllm.rules import broken_rules

Write = Callable[..., Path]
FILE, CONFIG = "hf_quant_config.json", "config.json"
SCHEMES = ("w4a16-awq", "w4a8-awq", "fp8", "fp8-channel", "fp8-block", "nvfp4", "nvfp4a16",
           "w8a16", "w4a16")  # fmt: skip


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_we_write_breaks_none(scheme: str, written: Write) -> None:
    assert broken_rules(written(scheme)) == []


@pytest.mark.parametrize(("family", "scheme"), [
    *((family, scheme) for family in ("qwen2", "qwen3", "gemma3_text")
      for scheme in ("w4a8-awq", "fp8", "nvfp4")),
    ("phi3", "fp8"), ("phi3", "nvfp4"),
])  # fmt: skip
def test_nor_of_other_families(scheme: str, family: str, written: Write) -> None:
    assert broken_rules(written(scheme, family=family)) == []


@pytest.mark.parametrize("method", ["gptq", "awq+nearest"])
def test_nor_what_was_calibrated(method: str, written: Write) -> None:
    for scheme in ("w4a16-awq", "w4a8-awq"):
        assert broken_rules(written(scheme, method=method)) == []


@pytest.mark.parametrize("kv", ["fp8", "nvfp4"])
@pytest.mark.parametrize("scheme", ["fp8", "nvfp4"])
def test_nor_with_a_cache(scheme: str, kv: str, written: Write) -> None:
    assert broken_rules(written(scheme, kv=kv)) == []


def test_nor_a_mix_or_shards(written: Write) -> None:
    layers = (("*.o_proj", "fp8"), ("*.1.mlp.*", "fp8-block"), ("*.0.*.down_proj", "float"))
    assert broken_rules(written("w4a16-awq", layers=layers)) == []
    assert broken_rules(written("w4a8-awq", split_bytes=300_000)) == []


@pytest.mark.parametrize(("scheme", "tp", "rules"), [
    ("fp8", 2, set()), ("fp8", 4, set()), ("fp8", 8, {"parallel"}), ("nvfp4", 4, set()),
    ("fp8", 3, {"parallel"}), ("w4a16-awq", 2, set()), ("w4a16-awq", 4, {"multiple", "parallel"}),
    ("w8a16", 2, set()), ("w8a16", 4, {"parallel"}),
    ("fp8-block", 2, {"multiple"}),
])  # fmt: skip
def test_ranks(scheme: str, tp: int, rules: set[str], written: Write) -> None:
    """4 heads, 2 of keys and values, which are repeated; o_proj has 256 inputs."""
    assert {one.rule for one in broken_rules(written(scheme), tp)} == rules


def test_the_model_type_counts(written: Write, tmp_path: Path) -> None:
    """FP8 blocks are computed in bfloat16 alone: asserted in FP8BlockScalesLinearMethod.apply."""
    copy = Path(shutil.copytree(written("fp8-block"), tmp_path / "half"))
    config = json.loads((copy / CONFIG).read_text("utf-8"))
    config["dtype"] = "float16"
    (copy / CONFIG).write_text(json.dumps(config), "utf-8")
    assert {one.rule for one in broken_rules(copy)} == {"model type"}


def test_without_the_nested_file_the_flat_one_counts(written: Write, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(written("w4a16-awq"), tmp_path / "flat"))
    (copy / FILE).unlink()
    assert broken_rules(copy) == []
    config = json.loads((copy / CONFIG).read_text("utf-8"))
    del config["quantization_config"]["group_size"]
    (copy / CONFIG).write_text(json.dumps(config), "utf-8")
    assert {one.rule for one in broken_rules(copy)} == {"groups"}
    del config["quantization_config"]
    (copy / CONFIG).write_text(json.dumps(config), "utf-8")
    assert [one.rule for one in broken_rules(copy)] == ["configuration"]


def test_what_is_stored_as_one_needs_a_method_that_takes_it_apart(
    written: Write, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(written("fp8", family="phi3"), tmp_path / "joined"))
    for name, key in ((FILE, "quantization"), (CONFIG, "quantization_config")):
        fields = json.loads((copy / name).read_text("utf-8"))
        fields[key]["quant_algo"] = "FP8_PER_CHANNEL_PER_TOKEN"
        (copy / name).write_text(json.dumps(fields), "utf-8")
    found = [one.where for one in broken_rules(copy) if one.rule == "joined"]
    assert found == [f"model.layers.{layer}.{one}" for layer in (0, 1)
                     for one in ("self_attn.qkv_proj", "mlp.gate_up_proj")]  # fmt: skip


@pytest.mark.parametrize(("name", "rules"), [("qkv_proj", {"type", "ignored"}), ("q_proj", set())])
def test_mixed_precision_is_looked_up_by_q_proj(
    name: str, rules: set[str], written: Write, tmp_path: Path
) -> None:
    """Also where q, k and v are stored as one: apply_layerwise_quant_config knows no other name."""
    copy = Path(shutil.copytree(written("fp8", family="phi3"), tmp_path / "mixed"))
    layers = {f"model.layers.{layer}.{one}": {"quant_algo": "FP8"} for layer in (0, 1)
              for one in (f"self_attn.{name}", "self_attn.o_proj", "mlp.gate_up_proj",
                          "mlp.down_proj")}  # fmt: skip
    for file, key in ((FILE, "quantization"), (CONFIG, "quantization_config")):
        fields = json.loads((copy / file).read_text("utf-8"))
        fields[key] |= {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
        (copy / file).write_text(json.dumps(fields), "utf-8")
    assert {one.rule for one in broken_rules(copy)} == rules


def test_a_folder_that_is_not_quantized(tiny_model: Callable[..., Path]) -> None:
    plain = tiny_model("llama", dtype="bfloat16")
    assert [one.rule for one in broken_rules(plain)] == ["configuration"]


@pytest.mark.parametrize(("name", "rules"), [
    ("llama-FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG", []),
    ("llama-FP8_DEFAULT_CFG-FP8_KV_CFG", []),
    ("llama-FP8_PER_CHANNEL_PER_TOKEN_CFG", []),
    ("llama-INT4_AWQ_CFG", []),
    ("llama-INT4_BLOCKWISE_WEIGHT_ONLY_CFG", 4 * ["required"]),
    ("llama-INT8_SMOOTHQUANT_CFG", ["algorithm"]),
    ("llama-INT8_WEIGHT_ONLY_CFG", []),
    ("llama-NVFP4_DEFAULT_CFG-FP8_KV_CFG", []),
    ("llama-W4A8_AWQ_BETA_CFG", []),
    ("qwen3-FP8_DEFAULT_CFG-FP8_KV_CFG", []),
])  # fmt: skip
def test_what_modelopt_writes(name: str, rules: list[str], modelopt: Any, tmp_path: Path) -> None:
    """With its headers, configuration and numbers. TensorRT-LLM has no SmoothQuant, and reads
    pre_quant_scale of o_proj and down_proj, which INT4_BLOCKWISE lacks."""
    found = broken_rules(modelopt(name).hollow(tmp_path / name))
    assert [one.rule for one in found] == rules
    for one in found:
        if one.rule == "required":
            assert one.where.endswith(("o_proj", "down_proj"))
            assert "pre_quant_scale" in one.why
