"""Faults that other exporters have shipped: what would bring each back, and what catches it.

benchmarks/traps.py puts them into a copy of the tree, one by one, and runs the tests named there.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qconvert.checkpoint import open_checkpoint
from qconvert.formats.refusal import Refused
from qconvert.formats.target import Request, target_named

ROOT = Path(__file__).resolve().parent.parent
Tiny = Callable[..., Path]


def _traps() -> Any:
    spec = importlib.util.spec_from_file_location("traps", ROOT / "benchmarks" / "traps.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["traps"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


TRAPS = _traps().TRAPS


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.name)
def test_each_can_still_be_put_back_and_is_looked_for(trap: Any) -> None:
    text = (ROOT / trap.file).read_text("utf-8")
    assert text.count(trap.line) == 1
    assert trap.fault != trap.line
    for test in trap.tests:
        file, _, name = test.partition("::")
        tree = ast.parse((ROOT / file).read_text("utf-8"))
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(
    ("name", "weights", "activations"),
    [
        ("w4a16-g128", ("int", 4, "group", 128, None), None),
        ("w4a16-channel-asym", ("int", 4, "channel", None, None), None),
        ("w8a8", ("int", 8, "channel", None, None), ("int", 8, "token", True)),
        ("w8a8-static", ("int", 8, "channel", None, None), ("int", 8, "tensor", False)),
        ("fp8", ("float", 8, "channel", None, None), ("float", 8, "token", True)),
        ("fp8-tensor", ("float", 8, "tensor", None, None), ("float", 8, "tensor", False)),
        ("fp8-block", ("float", 8, "block", None, [128, 128]), ("float", 8, "group", True)),
        ("nvfp4", ("float", 4, "tensor_group", 16, None), ("float", 4, "tensor_group", "local")),
        ("mxfp4", ("float", 4, "group", 32, None), None),
    ],
)
def test_the_granularity_is_the_one_asked_for(
    tiny_model: Tiny, name: str, weights: tuple[Any, ...], activations: tuple[Any, ...] | None
) -> None:
    plan = target_named("vllm").plan(open_checkpoint(tiny_model("llama")), Request(type=name))
    config = json.loads(plan.details["folder"].files["config.json"])["quantization_config"]
    (group,) = config["config_groups"].values()
    told = group["weights"]
    keys = ("type", "num_bits", "strategy", "group_size", "block_structure")
    assert tuple(told[key] for key in keys) == weights
    found = group["input_activations"]
    keys = ("type", "num_bits", "strategy", "dynamic")
    assert (found and tuple(found[key] for key in keys)) == activations


@pytest.mark.parametrize("target", ["vllm", "sglang", "lightllm"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_head_and_embedding_stay_float(tiny_model: Tiny, target: str, family: str) -> None:
    plan = target_named(target).plan(open_checkpoint(tiny_model(family)), Request(bits=4))
    quantized = {one.name for one in plan.tensors if one.grid is not None}
    assert quantized
    assert all("layers" in name and "norm" not in name for name in quantized)


def test_experts_and_routers_are_refused_not_guessed(tiny_model: Tiny, tmp_path: Path) -> None:
    """Models with experts are not known yet: nothing of them is quantized by accident."""
    folder = tmp_path / "mixture"
    shutil.copytree(tiny_model("llama"), folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config |= {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(Refused, match="mixtral"):
        open_checkpoint(folder)
