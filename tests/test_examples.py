"""The examples run as they are shown."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_roundtrip() -> None:
    done = subprocess.run(
        [sys.executable, "-P", str(EXAMPLES / "roundtrip.py")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    rows = re.findall(
        r"^(\S+): ([\d.]+) bits per weight, largest error ([\d.]+)", done.stdout, re.M
    )
    assert [kind for kind, _, _ in rows] == ["BF16", "Q8_0", "Q4_K_M"]
    bits = [float(row[1]) for row in rows]
    errors = [float(row[2]) for row in rows]
    assert bits[0] > bits[1] > bits[2]
    assert errors[0] < errors[1] < errors[2] < 0.02


def test_model_is_decoded_to_rounded_bfloat16() -> None:
    import torch

    values = np.random.default_rng(0).standard_normal(4096).astype(np.float32)
    ours = np.frombuffer(load("make_models").bfloat16(values), np.uint16)
    theirs = torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()
    assert np.array_equal(ours, theirs)


def test_rope_order_is_undone() -> None:
    """Rows side by side in a GGUF, (0 1)(2 3), are rows i and i + half in a checkpoint."""
    rows = np.arange(8, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)
    order = load("make_models").halves_order(rows, heads=2)[:, 0]
    assert order.tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
