"""benchmarks/kernel_speed.py runs every operation here, under Triton's interpreter; what is wrong
or too slow is found. Times are judged on a GPU only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "benchmarks" / "kernel_speed.py"
NO_OPERATION = ("__init__", "launch")


@pytest.fixture
def kernel_speed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import kernel_speed

    return kernel_speed


def test_every_operation_runs_and_is_right() -> None:
    done = subprocess.run(
        [sys.executable, "-P", str(SCRIPT), "--device", "cpu", "--tiny"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (done.stderr, lines[-1:])
    assert lines[-1]["failed"] == []
    assert all(line["correct"] and not line["judged"] for line in lines[:-1])
    found = {line["operation"].partition(".")[0] for line in lines[:-1]}
    wanted = {
        path.stem
        for path in (ROOT / "kernels" / "gpu").glob("*.py")
        if path.stem not in NO_OPERATION and not path.stem.endswith("_kernels")
        if (ROOT / "kernels" / path.name).exists()
    }
    assert found == wanted


class Known:
    """A clock of a GPU on which everything takes as long as it says."""

    judges = True
    copy = 100.0
    matmul = 100.0

    def once(self, run: Any) -> tuple[Any, float]:
        return run(), 99.0

    def __call__(self, run: Any) -> float:
        return float(run())


def test_slow_and_wrong_results_are_found(kernel_speed: ModuleType) -> None:
    from kernel_cases.case import Case

    def judged(**given: Any) -> dict[str, Any]:
        kind: dict[str, Any] = {"limit": "copy", "moved": 160, "wanted": 0.8, **given}
        case = Case("a", "b", lambda: 2.0, lambda found: abs(found - 2.0), **kind)
        line: dict[str, Any] = kernel_speed.measured(case, Known())
        return line

    assert judged()["reached"] == 0.8
    assert judged()["as_wanted"]
    assert not judged(wanted=0.81)["as_wanted"]
    assert judged(wanted=None)["as_wanted"]
    assert not judged(limit="matmul", flops=100)["as_wanted"]
    assert judged(limit="baseline", baseline=lambda: 5.0, wanted=2.5)["as_wanted"]
    assert not judged(limit="baseline", baseline=lambda: 4.9, wanted=2.5)["as_wanted"]
    wrong = Case("a", "b", lambda: 2.0, lambda found: found, 1.9, moved=160, limit="copy")
    assert not kernel_speed.measured(wrong, Known())["correct"]


def test_bits_are_compared(kernel_speed: ModuleType) -> None:
    from kernel_cases.case import unlike

    zero = torch.zeros(4)
    assert unlike({"d": (zero, None)}, {"d": (zero.clone(), None)}) == 0
    assert unlike(-zero, zero) == 0.25  # of the bytes
    assert unlike(zero.half(), zero) == 1
    assert unlike(zero.view(2, 2), zero) == 1
    nan = torch.full((4,), float("nan"))
    assert unlike(nan, nan.clone()) == 0
    assert unlike(zero, None) == 1
