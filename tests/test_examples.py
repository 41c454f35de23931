"""The examples run as they are shown."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree as ET

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


def test_release_check(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    """As a serving team's CI runs it: PASS, and FAIL by the same files with a stricter gate."""
    program = tmp_path / "bin" / "qconvert"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m qconvert "$@"\n', "utf-8")
    program.chmod(0o755)
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    gates, reports = tmp_path / "gates.toml", tmp_path / "reports"

    def release(most: float) -> int:
        gates.write_text(f"max-kl = {most}\n", "utf-8")
        words = [tiny_model("llama"), tmp_path / "out.gguf", reports, "--method", "rtn"]
        done = subprocess.run(
            ["bash", EXAMPLES / "release" / "release.sh", *words],
            env={**os.environ, "PATH": path, "GATES": str(gates)}, check=False,
        )  # fmt: skip
        return done.returncode

    assert release(5.0) == 0
    names = ["check.html", "check.json", "check.xml", "manifest.json"]
    assert sorted(one.name for one in reports.iterdir()) == names
    assert (
        json.loads((reports / "manifest.json").read_text("utf-8"))["checked"]["verdict"] == "PASS"
    )
    assert release(1e-9) == 1
    assert ET.parse(reports / "check.xml").getroot().find(".//failure") is not None


def test_release_gates_are_gates() -> None:
    from qconvert.runtimes.gate.gates import read_gates

    assert read_gates(EXAMPLES / "release" / "gates.toml").max_size == 120e6
