"""Conversions on a device, proved without one: `far_device` emulates it in a child process.

On the device every body is the plain one, so a conversion there must give the codes of one on the
processor by the same bodies, all of them. The processor's own bodies sum moments and products in
another order: then some values lie on the other side of a border between two codes, and some
choices between two results that are nearly as good turn out otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import backend_registration

HERE = Path(__file__).parent
CASES = ("gptq", "learned", "awq", "w8a8", "rotated", "nvfp4")
OTHERWISE = 0.1
"""Share of the codes that another order of sums may change in these models; 0 to 0.04 is usual.
Few tokens make moments nearly singular: in real models it is less."""
SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1,
    "vocab_size": 300,
}  # fmt: skip

pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason=f"torch {torch.__version__} cannot be given a device",
)


@pytest.fixture(scope="module")
def found(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Any]:
    """What the child printed, by case."""
    folder = tmp_path_factory.mktemp("far")
    text = folder / "text.txt"
    text.write_text(Path(argparse.__file__).read_text("utf-8")[:20_000], "utf-8")
    models = [
        tiny_model("llama", dtype="bfloat16", num_hidden_layers=blocks, **SMALL)
        for blocks in (1, 4)
    ]
    done = subprocess.run(
        [sys.executable, "-P", HERE / "far_conversions.py", *models, text, folder],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {line["case"]: line for line in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("case", CASES)
def test_codes_are_those_of_the_processor_by_the_same_bodies(
    found: Mapping[str, Any], case: str
) -> None:
    assert set(found) == set(CASES)
    assert found[case]["codes"] > 5000
    assert found[case]["alike"] == 0


@pytest.mark.parametrize("case", CASES)
def test_codes_differ_by_the_order_of_sums_alone(found: Mapping[str, Any], case: str) -> None:
    assert found[case]["processor"] <= OTHERWISE * found[case]["codes"]


def test_what_waits_on_the_processor_changes_nothing(found: Mapping[str, Any]) -> None:
    assert found["gptq"]["waiting"] == found["gptq"]["digest"]


def test_stopped_and_resumed_on_a_device(found: Mapping[str, Any]) -> None:
    """From the states behind block 1, the last that were written: block 2 is passed again."""
    told = found["gptq"]["stages"]
    assert found["gptq"]["resumed"] == found["gptq"]["digest"]
    assert "block 2: passing on" in told
    assert not [what for what in told if what.startswith(("block 0", "block 1"))]
    assert [what for what in told if what.endswith("calibrating")] == ["block 3: calibrating"]


MISTAKES = {
    "sum": "x + near",
    "in place": "near.add_(x)",
    "scalar in place": "near.sum().add_(x.sum())",
    "index": "near[torch.tensor([0]).to(device)]",
    "values put": "x[torch.tensor([0])] = near[:1]",
    "numpy": "x.numpy()",
    "chance": "torch.randn(2, device=device, generator=torch.Generator())",
    "product": "torch.nn.functional.linear(near, x)",
}
RIGHT = """
import sys
sys.path.insert(0, sys.argv[1])
import far_device, torch
device = far_device.install()
near, x = torch.arange(9.0).view(3, 3), torch.arange(9.0, device=device).view(3, 3)
x[torch.tensor([0])] += 1
x[1] = near[0]
near[2] = x[0]
assert (x.sum() + torch.tensor(1.0)).tolist() == 31, x
assert near[2].tolist() == [1, 2, 3]
assert x.cpu().numpy().shape == (3, 3)
assert x.device == device and torch.zeros_like(x).device == device
"""


def test_the_emulator_refuses_what_a_device_refuses() -> None:
    tried = "".join(
        f"try:\n    {line}\nexcept (RuntimeError, TypeError):\n    print({name!r})\n"
        for name, line in MISTAKES.items()
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", RIGHT + tried, str(HERE.parents[1])],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == list(MISTAKES)
