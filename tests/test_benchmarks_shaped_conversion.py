"""benchmarks/shaped_conversion.py on a processor; what is foretold of a device for its sizes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from qconvert import cost
from qconvert.asked import Asked
from qconvert.job import Job, prepare

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
H100 = 79e9  # bytes of its memory that are free


@pytest.fixture
def shaped(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import shaped

    return shaped


def test_it_runs_and_tells(tmp_path: Path) -> None:
    words = "8B --scale tiny --blocks 2 --rows 4 --length 32 --device cpu --threads 1 --scratch"
    script = BENCHMARKS / "shaped_conversion.py"
    ran = subprocess.run(
        [sys.executable, "-P", str(script), *words.split(), str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    *blocks, whole = (json.loads(line) for line in ran.stdout.splitlines())
    assert [one["block"] for one in blocks] == [0, 1]
    assert {"reading", "calibrating", "optimising"} <= set(blocks[0]["seconds"])
    assert whole["codes"] > 6_000_000
    assert whole["codes_that_differ"] == 0
    assert 0 < whole["errors"] < 0.1
    assert whole["faults"] == []
    assert not list(tmp_path.iterdir())


def job(shaped: ModuleType, size: str, method: str, folder: Path) -> tuple[Job, Asked]:
    """Of a checkpoint that has headers and no data."""
    model = shaped.write(folder / size, shaped.shape_of(size), hollow=True)
    asked = Asked(method=method, calib_rows=128, calib_length=2048, device="cuda")
    return prepare(model, "vllm", bits=4, out=folder / "out", asked=asked), asked


@pytest.mark.parametrize("method", ["gptq", "best"])
def test_what_is_foretold_of_a_device(shaped: ModuleType, method: str, tmp_path: Path) -> None:
    """8 billion weights within 12 GB; of 405 billion, a block at a time within one GPU of 80 GB
    where what is not at work waits on the processor, and not otherwise."""
    small, asked = job(shaped, "8B", method, tmp_path)
    assert cost.peak_of(small, asked, 1).device < 12e9
    large, asked = job(shaped, "405B", method, tmp_path)
    whole, waits = (cost.peak_of(large, asked, 1, waits=waits) for waits in (False, True))
    assert whole.device > H100 > waits.device
    assert waits.host > whole.host


def test_what_does_not_fit_waits(
    shaped: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, asked = job(shaped, "405B", "gptq", tmp_path)
    for free, waits in ((200e9, False), (H100, True)):
        monkeypatch.setattr(cost, "free_on_device", lambda _, free=free: free)
        assert cost.placed(made, asked, 1).waits is waits
