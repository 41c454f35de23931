"""benchmarks/accuracy.py runs, on a tiny model: the same layout as ggml's, and sane figures."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from qconvert.runtimes.llamacpp import LlamaCpp

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "accuracy.py"


def test_files_like_those_of_ggml_are_compared(
    runtime: LlamaCpp, tiny_model: Callable[..., Path], prose: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-P", str(SCRIPT), str(tiny_model("llama")), "--text", str(prose)]
    command += ["--types", "Q8_0,Q4_0,Q4_K_M", "--windows", "2", "--length", "64"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["type"], line["by"]) for line in lines] == [
        (type, by) for type in ("Q8_0", "Q4_0", "Q4_K_M") for by in ("qconvert", "ggml")
    ]
    for ours, theirs in zip(lines[::2], lines[1::2], strict=True):
        assert ours["tensor_bytes"] == theirs["tensor_bytes"]
        assert 0 < ours["kl_mean"] < 2 * theirs["kl_mean"]
    assert lines[0]["kl_mean"] < lines[2]["kl_mean"]
