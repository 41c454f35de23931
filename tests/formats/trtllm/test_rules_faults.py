"""Folders with one thing made wrong each, and the rule of TensorRT-LLM's loader that it breaks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qconvert.formats.trtllm.rules import broken_rules

Write = Callable[..., Path]
Tensors = dict[str, torch.Tensor]
Q, K, OUT, GATE, UP = (
    f"model.layers.0.{one}_proj"
    for one in ("self_attn.q", "self_attn.k", "self_attn.o", "mlp.gate", "mlp.up")
)
QKV = "model.layers.0.self_attn.q_proj, k_proj, v_proj"
GATE_UP = "model.layers.0.mlp.gate_proj, up_proj"
FILE, CONFIG = "hf_quant_config.json", "config.json"


@dataclass(frozen=True)
class Fault:
    """One thing made wrong in a folder of `scheme`."""

    scheme: str
    do: Callable[[Tensors, dict[str, Any], dict[str, Any]], Any]
    """Is given the tensors, what hf_quant_config.json says, and quantization_config."""
    rule: str
    where: str
    silent: bool = False
    more: tuple[tuple[str, Any], ...] = ()  # of the request


def drop(*names: str) -> Any:
    return lambda tensors, nested, flat: [tensors.pop(name) for name in names]


def change(name: str, how: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    return lambda tensors, nested, flat: tensors.update({name: how(tensors[name])})


def add(name: str, tensor: torch.Tensor) -> Any:
    return lambda tensors, nested, flat: tensors.update({name: tensor})


def say(**fields: Any) -> Any:
    """In both files."""

    def do(tensors: Tensors, nested: dict[str, Any], flat: dict[str, Any]) -> None:
        nested.update(fields)
        flat.update(fields)

    return do


def unsay(key: str) -> Any:
    return lambda tensors, nested, flat: (nested.pop(key), flat.pop(key, None))


def exclude(*names: str) -> Any:
    def do(tensors: Tensors, nested: dict[str, Any], flat: dict[str, Any]) -> None:
        nested["exclude_modules"] += names
        flat["ignore"] += names

    return do


def layer(name: str, entry: Mapping[str, Any] | None) -> Any:
    """The entry of `name` in quantized_layers, or none."""

    def do(tensors: Tensors, nested: dict[str, Any], flat: dict[str, Any]) -> None:
        for told in (nested, flat):
            told["quantized_layers"].pop(name, None)
            if entry is not None:
                told["quantized_layers"][name] = dict(entry)

    return do


def with_cache(tensors: Tensors, nested: dict[str, Any], flat: dict[str, Any]) -> None:
    nested["kv_cache_quant_algo"] = "FP8"
    flat["kv_cache_scheme"] = {"type": "float", "num_bits": 8, "dynamic": False}
    for name in ("k_proj.k_scale", "v_proj.v_scale"):
        tensors[f"model.layers.0.self_attn.{name}"] = torch.tensor(0.01)


MIX = (("layers", (("*.o_proj", "fp8"),)),)
CACHE = (("kv", "fp8"),)
FAULTS: Mapping[str, Fault] = {
    "a member's weight is missing": Fault("fp8", drop(f"{K}.weight"), "required", K),
    "o_proj has no pre_quant_scale": Fault(
        "w4a16-awq", drop(f"{OUT}.pre_quant_scale"), "required", OUT),
    "the same in W4A8": Fault("w4a8-awq", drop(f"{OUT}.pre_quant_scale"), "required", OUT),
    "q_proj has one, which W4A16 ignores": Fault(
        "w4a16-awq", add(f"{Q}.pre_quant_scale", torch.ones(256).bfloat16()), "ignored", Q, True),
    "k_proj alone has one, and q_proj's counts": Fault(
        "w4a8-awq", add(f"{K}.pre_quant_scale", torch.ones(256).bfloat16()), "together", QKV, True),
    "pre_quant_scale of another type than the model": Fault(
        "w4a8-awq", change(f"{OUT}.pre_quant_scale", torch.Tensor.half), "type", OUT),
    "pre_quant_scale too short": Fault(
        "w4a16-awq", change(f"{OUT}.pre_quant_scale", lambda x: x[:-1]), "shape", OUT),
    "input_scale differs in NVFP4": Fault(
        "nvfp4", change(f"{K}.input_scale", lambda x: x * 1.5), "equal", QKV),
    "input_scale differs in W4A8": Fault(
        "w4a8-awq", change(f"{UP}.input_scale", lambda x: x * 1.5), "equal", GATE_UP),
    "weight_scale_2 differs in NVFP4": Fault(
        "nvfp4", change(f"{UP}.weight_scale_2", lambda x: x * 2), "equal", GATE_UP),
    "weight_scale_2 differs in W4A8": Fault(
        "w4a8-awq", change(f"{K}.weight_scale_2", lambda x: x * 2), "equal", QKV),
    "NVFP4 without input_scale": Fault("nvfp4", drop(f"{OUT}.input_scale"), "required", OUT, True),
    "W4A8 without input_scale": Fault("w4a8-awq", drop(f"{OUT}.input_scale"), "required", OUT),
    "W4A8 without weight_scale_2": Fault(
        "w4a8-awq", drop(f"{OUT}.weight_scale_2"), "required", OUT),
    "FP8 without a scale": Fault("fp8", drop(f"{OUT}.weight_scale"), "required", OUT, True),
    "FP8, input_scale in two of three": Fault(
        "fp8", drop(f"{K}.input_scale"), "together", QKV, True),
    "rows without scales": Fault("fp8-channel", drop(f"{K}.weight_scale"), "required", K, True),
    "INT8 without scales": Fault("w8a16", drop(f"{K}.weight_scale"), "required", K),
    "NVFP4's block scales in float32": Fault(
        "nvfp4", change(f"{OUT}.weight_scale", torch.Tensor.float), "type", OUT),
    "an FP8 weight in bfloat16": Fault(
        "fp8", change(f"{OUT}.weight", torch.Tensor.bfloat16), "type", OUT, True),
    "rows cut off": Fault("fp8", change(f"{OUT}.weight", lambda x: x[:-8].clone()), "shape", OUT),
    "INT4 not packed": Fault(
        "w4a16-awq", change(f"{OUT}.weight", lambda x: x.repeat(2, 1)), "shape", OUT),
    "scales transposed": Fault(
        "w4a16-awq", change(f"{OUT}.weight_scale", lambda x: x.T.contiguous()), "shape", OUT),
    "a scale for each row as a column": Fault(
        "w8a16", change(f"{OUT}.weight_scale", lambda x: x[:, None].clone()), "shape", OUT),
    "a bias of one member": Fault("fp8", add(f"{Q}.bias", torch.zeros(256)), "together", QKV),
    "zero points stored": Fault(
        "w4a16-awq", add(f"{OUT}.weight_zero_point", torch.zeros(256, 2)), "ignored", OUT, True),
    "the size of groups is missing": Fault("w4a16-awq", unsay("group_size"), "groups", QKV),
    "groups of 32": Fault("w4a16-awq", say(group_size=32), "groups", QKV),
    "groups of 64 in W4A8": Fault("w4a8-awq", say(group_size=64), "groups", QKV),
    "zero points are told of": Fault(
        "w4a16-awq", say(has_zero_point=True), "zero points", FILE, True),
    "an algorithm that is not read": Fault(
        "w8a16", say(quant_algo="W8A8_SQ_PER_CHANNEL"), "algorithm", FILE),
    "a spelling that is not known": Fault("fp8-block", say(quant_algo="FP8_PB_WO"), "algorithm",
                                          FILE),
    "two files that differ": Fault(
        "fp8", lambda tensors, nested, flat: flat.update(quant_algo="NVFP4"), "differ", CONFIG),
    "a linear told of as float": Fault("fp8", exclude("*.o_proj"), "type", OUT, True),
    "one member told of as float": Fault("fp8", exclude("*.k_proj"), "mixed", QKV, True),
    "a quantized head": Fault(
        "fp8", change("lm_head.weight", lambda x: x.to(torch.float8_e4m3fn)), "type",
        "lm_head.weight", True),
    "k_scale without v_scale": Fault(
        "fp8", drop("model.layers.0.self_attn.v_proj.v_scale"), "cache", QKV, more=CACHE),
    "a cache beside FP8 of rows": Fault("fp8-channel", with_cache, "cache", QKV, True),
    "an INT8 cache": Fault("fp8", lambda tensors, nested, flat: nested.update(
        kv_cache_quant_algo="INT8"), "cache", FILE),
    "a prefix that the model has not": Fault(
        "w4a16-awq", layer(f"no.{OUT}", {"quant_algo": "FP8"}), "mixed", FILE, True, MIX),
    "no entry for o_proj": Fault("w4a16-awq", layer(OUT, None), "ignored", OUT, True, MIX),
    "another entry for k_proj than for q_proj": Fault(
        "w4a16-awq", layer(K, {"quant_algo": "FP8"}), "mixed", QKV, True, MIX),
    "the alias in quantized_layers": Fault(
        "w4a16-awq", layer(OUT, {"quant_algo": "fp8_pb_wo"}), "algorithm", FILE, more=MIX),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_found(name: str, written: Write, tmp_path: Path) -> None:
    fault = FAULTS[name]
    found = broken_rules(damaged(written(fault.scheme, **dict(fault.more)), tmp_path, fault.do))
    assert any((one.rule, one.where, one.silent) == (fault.rule, fault.where, fault.silent)
               for one in found), found  # fmt: skip
    assert all(one.reason().problem.startswith(f"{one.where}: ") for one in found)


def damaged(folder: Path, tmp_path: Path, do: Any) -> Path:
    copy = Path(shutil.copytree(folder, tmp_path / "damaged"))
    tensors = load_file(copy / "model.safetensors")
    nested, config = (json.loads((copy / name).read_text("utf-8")) for name in (FILE, CONFIG))
    do(tensors, nested["quantization"], config["quantization_config"])
    save_file({name: one.contiguous() for name, one in tensors.items()}, copy / "model.safetensors")
    (copy / FILE).write_text(json.dumps(nested), "utf-8")
    (copy / CONFIG).write_text(json.dumps(config), "utf-8")
    return copy
