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

    def __call__(self, *runs: Any) -> float:
        return float(sum(run() for run in runs) / len(runs))

    def launching(self, *runs: Any) -> float:
        return 0.0


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


def test_a_gpu_is_busy_before_and_events_are_around_the_runs(
    kernel_speed: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the stream: a run takes a millisecond of the GPU, whatever is before it."""
    from kernel_cases import clock as module

    done: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = len(done)

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, end: Any) -> float:
            return float(sum(one != "fill" for one in done[self.at : end.at]))

    class OnGPU(module.Clock):  # type: ignore[misc, name-defined]
        judges = True
        _filling = 1e-5

        class _fill:
            nbytes = 100

            @staticmethod
            def sum() -> None:
                done.append("fill")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    clock = OnGPU(torch.device("cuda"), repeat=3)
    runs = [lambda name=name: done.append(name) for name in "ab"]
    assert clock(*runs) == 1e-3
    assert [one for one in done if one != "fill"] == ["a", "b"] * (2 + 3)  # tried twice, then timed
    assert done[:5] == ["a", "b", "a", "b", "fill"]
    assert done[-3:] == ["fill", "a", "b"]
    assert [clock.copies(size) for size in (1000, 100, 99, 7)] == [1, 1, 2, 15]
    monkeypatch.setattr(module, "ENOUGH", 0.0)
    done.clear()
    assert clock(*runs) > 0
    assert done == ["a", "b"]  # as long as a loop of plain torch: once


def test_what_fails_is_a_line_and_the_rest_runs(kernel_speed: ModuleType) -> None:
    from kernel_cases.case import Case

    def case(name: str, run: Any) -> Any:
        return Case("a", name, run, lambda found: 0.0, moved=160, limit="copy", wanted=0.8)

    def group() -> Any:
        yield case("first", lambda: 1 / 0)
        yield case("second", lambda: 2.0)
        raise MemoryError("no room for the third")

    lines = list(kernel_speed.lines("family", group, Known()))
    assert [line["of"] for line in lines] == ["first", "second", "its data could not be made"]
    assert [line["as_wanted"] for line in lines] == [False, True, False]
    assert lines[0]["error"].startswith("ZeroDivisionError")
    assert "no room" in lines[2]["error"]


def test_runs_on_copies_share_a_time(kernel_speed: ModuleType) -> None:
    from kernel_cases.case import Case

    case = Case(
        "a", "b", lambda: 1.0, lambda found: 0.0, moved=160, limit="baseline", wanted=2.5,
        baseline=lambda: 7.0, more=(lambda: 3.0,), more_baseline=(lambda: 3.0,),
    )  # fmt: skip
    line = kernel_speed.measured(case, Known())
    assert (line["ms"], line["baseline_ms"], line["faster"]) == (2000.0, 5000.0, 2.5)


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
