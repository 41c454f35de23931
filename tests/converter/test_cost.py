"""What a calibrated conversion is foretold to cost, and what happens where it does not fit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qconvert import cost, lacks, pipeline, rates, resources, sizes
from qconvert.asked import Asked
from qconvert.checkpoint import Checkpoint
from qconvert.cli import run
from qconvert.formats.refusal import Refused
from qconvert.job import Job, prepare, shortages

Tiny = Callable[..., Path]
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3}
FEW = Asked(method="best", calib_rows=8, calib_length=32)
WORDS = ["--type", "Q4_0", "--calib-rows", "8", "--calib-length", "32", "--threads", "1"]


@pytest.fixture
def job(tiny_model: Tiny, tmp_path: Path) -> Job:
    return prepare(tiny_model("llama", **SMALL), type="Q4_0", out=tmp_path / "x.gguf", asked=FEW)


def test_a_plan_tells_all_and_reads_no_weight(
    tiny_model: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Checkpoint, "rows", lambda *_: pytest.fail("a weight was read"))
    monkeypatch.chdir(tmp_path)
    model = str(tiny_model("llama", **SMALL))
    capsys.readouterr()
    assert run([model, "--to", "gguf", *WORDS, "--plan", "--json", "plan.json"]) == 0
    shown = capsys.readouterr().out
    for part in ("best (weighted, gptq, descent)", "default: 8 rows of 32 tokens, 1 of them held",
                 "memory", "disk", "work folder", "hidden states", "time"):  # fmt: skip
        assert part in shown
    told = json.loads(Path("plan.json").read_text())
    assert told["method"] == "best"
    assert told["steps"] == ["weighted", "gptq", "descent"]
    data = told["calibrating"]
    assert (data["origin"], data["rows"], data["length"], data["held_rows"]) == (
        "default", 8, 32, 1,
    )  # fmt: skip
    assert data["compute"] in ("float32", "bfloat16")
    assert data["states_bytes"] == 2 * 4 * 8 * 32 * 64
    assert told["estimate"]["seconds"] > 0
    assert list(Path().iterdir()) == [Path("plan.json")]


def test_a_plan_finds_the_faults_of_the_text(tiny_model: Tiny, tmp_path: Path) -> None:
    model = tiny_model("llama", **SMALL)
    (tmp_path / "short.txt").write_text("hello")
    for name, told in (("short.txt", "too short"), ("none.txt", "none.txt")):
        asked = replace(FEW, calib=str(tmp_path / name))
        with pytest.raises(Refused, match=told):
            pipeline.plan(model, type="Q4_0", out=tmp_path, asked=asked)


def test_memory_follows_what_is_asked_for(job: Job) -> None:
    def peak(**changed: Any) -> int:
        return cost.peak_of(job, replace(FEW, **changed), 1).host

    assert peak() < peak(calib_rows=4096) < peak(calib_rows=8192)
    assert peak() < peak(calib_length=4096)
    grown = peak(calib_rows=32768) - peak(calib_rows=16384)
    assert grown == 2 * 4 * 16384 * 32 * 64  # hidden states, in and out, are all that grows then


def test_samples_of_tokens_are_foretold(tiny_model: Tiny, tmp_path: Path) -> None:
    """Where a rule looks at them, and not where none does."""
    model = tiny_model("llama", dtype="bfloat16", **SMALL)
    asked = replace(FEW, method="rtn")
    for kind, fixed in (("w8a8-static", True), ("w8a8", False)):
        made = prepare(
            model, "vllm", type=kind, out=tmp_path / kind, asked=replace(FEW, method="gptq")
        )
        found = [
            cost.peak_of(made, replace(asked, activation_scales=rule), 1).host
            for rule in ("max", "mse")
        ]
        assert (found[1] > found[0]) == fixed
        assert found[1] - found[0] < 100_000_000
        assert len(sizes.sizes_of(made).sampled) == 4 * fixed


def test_a_deeper_model_takes_more_disk_and_no_more_memory(
    tiny_model: Tiny, tmp_path: Path
) -> None:
    jobs = [
        prepare(
            tiny_model("llama", **{**SMALL, "num_hidden_layers": blocks}),
            type="Q4_0",
            out=tmp_path / "x.gguf",
            asked=FEW,
        )
        for blocks in (2, 6)
    ]
    assert cost.peak_of(jobs[0], FEW, 1) == cost.peak_of(jobs[1], FEW, 1)
    assert lacks.work_bytes(jobs[0].plan) < lacks.work_bytes(jobs[1].plan)


def test_memory_is_foretold(tiny_model: Tiny, tmp_path: Path) -> None:
    """Of a fresh process: this one has held other models."""
    model = tiny_model("llama", **SMALL)
    asked = replace(FEW, calib_rows=64, calib_length=256)
    job = prepare(model, type="Q4_0", out=tmp_path / "x.gguf", asked=asked)
    words = [str(model), "--to", "gguf", "--type", "Q4_0", "--calib-rows", "64", "--calib-length",
             "256", "--threads", "1", "--out", str(tmp_path / "x.gguf"), "--json", "-"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-P", "-m", "qconvert", *words], capture_output=True, check=True
    )
    peak = json.loads(done.stdout)["peak_memory_bytes"]
    assert peak / 1.5 < cost.peak_of(job, asked, 1).host < 1.5 * peak


# --- refusals


def options(told: str) -> dict[str, int]:
    """The calibration options that a remedy names."""
    words = told.split("->")[1].split(" or ")[0].split()
    names = {"--calib-rows": "calib_rows", "--calib-length": "calib_length"}
    return {names[w]: int(words[i + 1]) for i, w in enumerate(words) if w in names}


@pytest.mark.parametrize("share", [0.4, 0.9])
def test_too_little_memory_names_the_option_that_fits(
    share: float, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    much = replace(FEW, calib_rows=8192, calib_length=256)
    least, need = (cost.peak_of(job, one, 1).host for one in (FEW, much))
    here = int(least + share * (need - least))
    monkeypatch.setattr(lacks, "available_memory", lambda: here)
    monkeypatch.setattr(lacks, "resident_bytes", lambda: 0)
    (reason,) = shortages(job, much, 1)
    assert "not enough memory" in reason.problem
    assert "--method rtn" in reason.remedy
    assert shortages(job, replace(much, **options(str(reason))), 1) == []


def test_nothing_is_promised_that_does_not_fit(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lacks, "resident_bytes", lambda: 0)
    monkeypatch.setattr(lacks, "available_memory", lambda: 300_000_000)
    (reason,) = shortages(job, FEW, 1)
    assert "--calib" not in reason.remedy
    assert "--method rtn" in reason.remedy
    monkeypatch.setattr(lacks, "available_memory", lambda: 1000)
    (reason,) = shortages(job, FEW, 1)
    assert "no option" in reason.remedy


def test_too_little_disk_for_the_work_folder(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    much = replace(FEW, calib_rows=8192)
    need = lacks.work_bytes(job.plan) + 2 * 4 * 8192 * 32 * 64
    monkeypatch.setattr(lacks, "free_bytes", lambda folder: need)
    assert shortages(job, much, 1) == []
    monkeypatch.setattr(lacks, "free_bytes", lambda folder: need - 1)
    (reason,) = shortages(job, much, 1)
    assert "x.gguf.work" in reason.problem
    assert "--work" in reason.remedy
    assert "--calib-rows 4096" in reason.remedy
    work = tmp_path / "x.gguf.work"
    work.mkdir()
    (work / "part").write_bytes(b"1")  # what is there already is not needed again
    assert shortages(job, much, 1) == []


def test_it_is_refused_before_the_engine_starts(
    tiny_model: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    model = str(tiny_model("llama", **SMALL))
    monkeypatch.setattr(Checkpoint, "rows", lambda *_: pytest.fail("a weight was read"))
    monkeypatch.setattr(lacks, "available_memory", lambda: 0)
    monkeypatch.setattr(lacks, "resident_bytes", lambda: 300_000_000)
    capsys.readouterr()
    assert run([model, "--to", "gguf", *WORDS]) == 2
    assert "not enough memory" in capsys.readouterr().err
    assert run([model, "--to", "gguf", *WORDS, "--plan"]) == 2
    shown = capsys.readouterr().out
    assert "in the way: not enough memory" in shown
    assert "time" in shown
    assert list(Path().iterdir()) == []
    plain = ["--type", "Q4_0", "--method", "rtn", "--plan"]
    assert run([model, "--to", "gguf", *plain]) == 0


def test_without_calibration_torch_is_not_imported(tiny_model: Tiny, tmp_path: Path) -> None:
    words = [str(tiny_model("llama", **SMALL)), "--to", "gguf", "--type", "Q4_0", "--method", "rtn",
             "--out", str(tmp_path / "x.gguf")]  # fmt: skip
    code = (
        "import sys\nfrom qconvert.cli import run\n"
        f"assert run({[*words, '--plan']!r}) == 0 and run({words!r}) == 0\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == "False"


# --- what a control group leaves


def group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")


def test_the_tightest_group_counts(tmp_path: Path) -> None:
    root, listing = tmp_path / "cgroup", tmp_path / "listing"
    listing.write_text("0::/user/job\n")
    stat = "anon 5\ninactive_file 30"
    group(root / "user/job", memory__max=1000, memory__current=500, memory__stat=stat)
    group(root / "user", memory__max="max", memory__current=900, memory__stat=stat)
    group(root, memory__max=600, memory__current=500, memory__stat=stat)
    assert resources.group_rooms(listing, root) == [530, 130]


def test_groups_of_version_1(tmp_path: Path) -> None:
    root, listing = tmp_path / "cgroup", tmp_path / "listing"
    listing.write_text("4:cpu:/job\n3:memory:/job\n")
    stat = "total_inactive_file 7"
    names = {"memory__limit_in_bytes": 100, "memory__usage_in_bytes": 50, "memory__stat": stat}
    group(root / "memory/job", **names)
    group(root / "memory", **{**names, "memory__limit_in_bytes": 2**63 - 4096})
    group(root / "cpu/job", **names)
    assert resources.group_rooms(listing, root) == [57]


def test_no_groups(tmp_path: Path) -> None:
    assert resources.group_rooms(tmp_path / "none", tmp_path) == []
    assert resources.available_memory() > 0


def test_a_device_is_tried_on_more_rows_than_a_thread() -> None:
    """On as few as a thread takes, a GPU would seem as slow for one row as for thousands."""
    import torch

    assert [rates.rows_on_trial(threads, torch.device("cpu")) for threads in (1, 4)] == [128, 512]
    assert rates.rows_on_trial(1, torch.device("cuda")) == rates.MANY >= 4096
