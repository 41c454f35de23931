"""A calibrated conversion around the engine: text, global transforms, work folder, records."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from qconvert import calibrate
from qconvert.asked import Asked
from qconvert.checkpoint import open_checkpoint
from qconvert.cli import run
from qconvert.formats.refusal import Refused
from qconvert.job import prepare
from qconvert.pipeline import convert
from qconvert.recipe import parse

Tiny = Callable[..., Path]
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "mine.txt"
    path.write_text(Path(argparse.__file__).read_text("utf-8")[:20_000], "utf-8")
    return path


@pytest.fixture
def asked(text: Path, tmp_path: Path) -> Asked:
    return Asked(calib=str(text), calib_rows=9, calib_length=24, work=tmp_path / "work")


def test_rows_are_those_of_the_text(tiny_model: Tiny, asked: Asked) -> None:
    checkpoint = open_checkpoint(tiny_model("llama", **SMALL))
    found = calibrate.tokens_of(checkpoint, asked)
    assert found.tokens.shape == (9, 24)
    assert found.origin == "mine.txt"
    fewer = calibrate.tokens_of(checkpoint, replace(asked, calib_rows=4))
    assert np.array_equal(fewer.tokens, found.tokens[:4])


def test_the_default_text_needs_no_file(tiny_model: Tiny) -> None:
    found = calibrate.tokens_of(open_checkpoint(tiny_model("llama", **SMALL)), Asked(calib_rows=3))
    assert found.tokens.shape == (3, 512)
    assert found.origin == "default"


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert calibrate.device_of(Asked()).type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Refused, match="--device cpu"):
        calibrate.device_of(Asked(device="cuda"))


def test_settings_are_those_asked_for() -> None:
    found = calibrate.setting_of(Asked(seed=5, effort=2), 3)
    assert (found.seed, found.threads, found.effort) == (5, 3, 2)


def test_without_a_global_transform_the_source_is_the_checkpoint(tiny_model: Tiny) -> None:
    checkpoint = open_checkpoint(tiny_model("llama", **SMALL))
    source, notes = calibrate.transformed(checkpoint, parse("awq+gptq"), Asked())
    assert source is checkpoint
    assert notes == ()


def test_a_rotation_unties_the_head(tiny_model: Tiny, tmp_path: Path) -> None:
    folder = tiny_model("llama", **SMALL, tie_word_embeddings=True)
    job = prepare(folder, type="Q4_0", out=tmp_path, asked=Asked(method="quarot+gptq"))
    assert job.calibrated
    assert not job.source.tied
    assert any("the head is stored beside" in note for note in job.plan.notes)
    assert job.model == folder


def test_what_a_transform_cannot_do_is_refused_before_a_weight_is_read(
    tiny_model: Tiny, tmp_path: Path
) -> None:
    with pytest.raises(Refused, match=r"quarot|rotat|LayerNorm"):
        prepare(tiny_model("gpt2"), type="Q4_0", out=tmp_path, asked=Asked(method="quarot+gptq"))


def test_what_is_told_of_a_conversion(
    tiny_model: Tiny, text: Path, asked: Asked, tmp_path: Path
) -> None:
    folder = tiny_model("llama", **SMALL)
    stages: list[str] = []
    done = convert(
        folder,
        type="Q4_0",
        out=tmp_path / "a.gguf",
        threads=1,
        asked=replace(asked, keep_work=True),
        blocks=lambda what, *_: stages.append(what),
    )
    told = done.calibrated
    assert told is not None
    assert told.method == "best"
    assert told.steps == ("weighted", "gptq", "descent")
    assert told.calibration is not None
    facts = told.calibration
    assert (facts.origin, facts.rows, facts.length, facts.held_rows) == ("mine.txt", 9, 24, 1)
    assert [one.index for one in told.blocks] == [0, 1]
    assert told.resumed == 0
    assert told.work == tmp_path / "work"
    assert "block 1: done" in stages
    for block in told.blocks:
        assert len(block.linears) == 7
        assert all(one.error <= one.plain_error for one in block.linears)  # guarded
        assert any(one.error < one.plain_error for one in block.linears)

    again = convert(folder, type="Q4_0", out=tmp_path / "b.gguf", threads=1, asked=asked)
    assert again.calibrated is not None
    assert again.calibrated.resumed == 2
    assert again.calibrated.blocks == told.blocks
    assert (tmp_path / "b.gguf").read_bytes() == (tmp_path / "a.gguf").read_bytes()
    assert not (tmp_path / "work").exists()  # nothing is kept unless it is asked for


def test_a_work_folder_is_inspected_and_written_again(
    tiny_model: Tiny, asked: Asked, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_model("llama", **SMALL)
    kept = replace(asked, keep_work=True)
    convert(folder, type="Q4_0", out=tmp_path / "a.gguf", threads=1, asked=kept)
    work = tmp_path / "work"
    capsys.readouterr()
    assert run(["inspect", str(work)]) == 0
    shown = capsys.readouterr().out
    for part in ("work folder of a model of type llama", "gguf", "Q4_0", "gptq", "attn_q", "24"):
        assert part in shown
    again = convert(work, out=tmp_path / "b.gguf")
    assert again.model == work
    assert again.calibrated is None
    assert (tmp_path / "b.gguf").read_bytes() == (tmp_path / "a.gguf").read_bytes()


def test_a_plan_of_a_work_folder_counts_no_fitting(
    tiny_model: Tiny, asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qconvert import estimate, pipeline

    kept = replace(asked, keep_work=True)
    convert(
        tiny_model("llama", **SMALL), type="Q4_0", out=tmp_path / "a.gguf", threads=1, asked=kept
    )
    monkeypatch.setattr(estimate, "seconds_per_weight", lambda *_: pytest.fail("a trial was made"))
    job, cost = pipeline.plan(tmp_path / "work", out=tmp_path / "b.gguf")
    assert job.model == tmp_path / "work"
    assert cost.seconds < 1
    assert cost.calibrating is None
