"""benchmarks/same_codes.py runs over all its grids here, and finds what is not the same."""

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

from qconvert.kernels import fit as kernels

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "benchmarks" / "same_codes.py"


@pytest.fixture
def same_codes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import same_codes

    return same_codes


def lines_of(*options: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-P", str(SCRIPT), "--tiny", *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (done.stderr, lines[-1:])
    assert lines[-1]["failed"] == []
    return lines[:-1]


def test_plain_bodies_give_the_codes_of_the_processor(same_codes: ModuleType) -> None:
    lines = lines_of("--body", "plain")
    wanted = {(grid, what) for grid in same_codes.GRIDS for what in same_codes.OPERATIONS}
    assert {(line["grid"], line["operation"]) for line in lines} == wanted
    assert all(line["equal"] and not line["differ"] and line["codes"] > 50 for line in lines)


@pytest.mark.parametrize("grid", ["Q4_0", "int4_g32_portable", "mxfp4"])
def test_bodies_of_a_gpu_give_them_under_the_interpreter(grid: str) -> None:
    pytest.importorskip("triton")
    assert len(lines_of("--body", "gpu", "--only", f"{grid}$")) == 4


def test_every_kind_of_search_is_compared(same_codes: ModuleType) -> None:
    from qconvert.formats.known_grids import grid_named

    grids = [grid_named(name) for name in same_codes.GRIDS]
    found = {type(grid.search).__name__ for grid in grids if hasattr(grid, "search")}
    kinds = {name for name, kind in vars(kernels).items() if hasattr(kind, "kernel")}
    assert found >= kinds - {"Fit"}


def test_what_differs_is_found(
    same_codes: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def off_by_one(ours: Any, other: Any) -> list[Any]:
        codes = torch.zeros(4, dtype=torch.uint8)
        return [(codes, codes + torch.tensor([0, 1, 0, 0], dtype=torch.uint8))]

    words = ["same_codes", "--body", "plain", "--tiny", "--only", "^Q4_0$"]
    monkeypatch.setattr(sys, "argv", words)
    for operation, code in (("fit", 1), ("rounds", 1)):
        monkeypatch.setattr(same_codes, "OPERATIONS", {operation: off_by_one})
        assert same_codes.main() == code
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert lines[0]["differ"] == 1
        assert lines[-1]["failed"] == [f"{operation} of Q4_0 [3, 64]"]
    assert not same_codes.wrong({"equal": False, "differ": 1, "others_differ": 1})
    assert same_codes.wrong({"equal": True, "differ": 0, "others_differ": 1})
