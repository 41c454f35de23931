"""What the command line asks for, and what its help tells: no model is read here."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click
import pytest

from qconvert import pipeline, report_folder
from qconvert.asked import Asked, Calibrated
from qconvert.cli import cli, run
from qconvert.formats.target import Plan
from qconvert.methods import NAMED, SLOTS, algorithms
from qconvert.options import GROUPS, all_groups

Calls = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def calls(calibrated: Calibrated, monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What `pipeline.convert` was called with; it gives a conversion that the engine has made."""
    made: Calls = []

    def convert(model: Path, to: str, **given: Any) -> pipeline.Conversion:
        made.append({"model": model, "to": to, **given})
        out = Path("out.gguf")
        out.write_bytes(b"GGUF")
        plan = Plan(to, "Q4_K_M", (), "out.gguf")
        return pipeline.Conversion(
            model, to, "Q4_K_M", (out,), 4, 1.0, 10**9, {}, plan, calibrated=calibrated
        )

    monkeypatch.setattr(pipeline, "convert", convert)
    return made


def test_the_defaults_are_those_of_the_library(calls: Calls) -> None:
    assert run(["model", "--to", "gguf", "--bits", "4"]) == 0
    assert calls[0]["asked"] == Asked()


ALL: dict[str, tuple[str, Any, Any]] = {
    "--method": ("method", "awq+gptq", "awq+gptq"),
    "--calib": ("calib", "texts", "texts"),
    "--calib-rows": ("calib_rows", "8", 8),
    "--calib-length": ("calib_length", "128", 128),
    "--calib-chat": ("calib_chat", None, True),
    "--seed": ("seed", "5", 5),
    "--activation-scales": ("activation_scales", "mse", "mse"),
    "--effort": ("effort", "2", 2),
    "--device": ("device", "cuda", "cuda"),
    "--compute": ("compute", "float32", "float32"),
    "--work": ("work", "w", Path("w")),
    "--keep-work": ("keep_work", None, True),
    "--resume": ("resume", None, True),
}


@pytest.mark.parametrize("option", ALL)
def test_each_option_is_asked_for(option: str, calls: Calls) -> None:
    name, value, read = ALL[option]
    words = [option] if value is None else [option, value]
    assert run(["model", "--to", "gguf", *words]) == 0
    assert calls[0]["asked"] == replace(Asked(), **{name: read})


def test_every_field_has_an_option(calls: Calls) -> None:
    assert {name for name, _, _ in ALL.values()} == {field.name for field in fields(Asked)}
    assert run(["model", "--to", "gguf", "--no-resume"]) == 0
    assert calls[0]["asked"].resume is False


def test_a_plan_is_asked_for_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    class Seen(Exception):
        pass

    def plan(*_: object, **given: Any) -> None:
        assert given["asked"] == Asked(method="gptq", calib_rows=4)
        raise Seen

    monkeypatch.setattr(pipeline, "plan", plan)
    with pytest.raises(Seen):
        run(["--debug", "model", "--to", "gguf", "--plan", "--method", "gptq", "--calib-rows", "4"])


@pytest.mark.parametrize(
    "words",
    [["--calib-rows", "1"], ["--calib-length", "0"], ["--seed", "-1"], ["--effort", "-1"],
     ["--device", "abacus"], ["--report", "no/such/folder"]],
)  # fmt: skip
def test_what_cannot_be_is_refused_first(
    words: list[str], calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["model", "--to", "gguf", *words]) == 2
    assert words[0].strip("-") in capsys.readouterr().err
    assert calls == []


def test_layers_are_shown_and_told_in_json(
    calls: Calls, calibrated: Calibrated, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["model", "--to", "gguf", "--json", "told.json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for word in ("best (weighted, gptq)", "the 10 linears with the largest error", "kurtosis",
                 "note: some text was short"):  # fmt: skip
        assert word in out
    told = json.loads(Path("told.json").read_text())["calibrated"]
    assert len(told["linears"]) == sum(len(block.linears) for block in calibrated.blocks)
    assert [one["kurtosis"] for one in told["inputs"]] == [
        one.kurtosis for block in calibrated.blocks for one in block.inputs
    ]
    assert not Path("report").exists()


def test_a_report_is_written_where_it_is_asked_for(
    calls: Calls, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_folder, "pictures", lambda blocks: {})  # test_plots.py has them
    assert run(["model", "--to", "gguf", "--report", "report"]) == 0
    assert "attn_q" in Path("report/report.html").read_text()
    assert run(["model", "--to", "gguf", "--report", "report"]) == 2
    assert "--force" in capsys.readouterr().err
    assert len(calls) == 1
    assert run(["model", "--to", "gguf", "--report", "report", "--force"]) == 0


def test_a_plan_has_no_report(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["model", "--to", "gguf", "--plan", "--report", "report"]) == 2
    assert "--plan" in capsys.readouterr().err


def test_every_option_of_a_conversion_is_in_one_group() -> None:
    command = cli.commands["convert"]
    names = [one.name for one in command.params if isinstance(one, click.Option)]
    assert sorted(name for group in all_groups().values() for name in group) == sorted(
        map(str, names)
    )


@pytest.mark.parametrize("words", [["--help"], ["convert", "--help"]])
def test_help_is_grouped(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 0
    shown = capsys.readouterr().out
    places = [shown.index(f"\n{title}") for title in GROUPS]
    assert places == sorted(places)
    for option in ALL:
        assert option in shown
    for one in NAMED:
        assert one.name in shown


def test_named_methods_are_described_with_their_cost(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["convert", "--help"]) == 0
    help_text = capsys.readouterr().out
    assert run(["methods"]) == 0
    shown = capsys.readouterr().out
    for one in NAMED:
        assert one.cost in help_text
        assert one.cost in shown


def test_methods_lists_what_fills_each_slot(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["methods", "--json", "-"]) == 0
    told = json.loads(capsys.readouterr().out)
    found = list(algorithms())
    assert told["algorithms"] == [
        {"slot": one.slot, "name": one.name, "summary": one.summary} for one in found
    ]
    assert [one.slot for one in found] == sorted((one.slot for one in found), key=[*SLOTS].index)
    assert {"awq", "smoothquant", "osplus", "quarot"} <= {one.name for one in found}
    assert all(one.summary and "\n" not in one.summary for one in found)
    assert [one["name"] for one in told["methods"]] == [one.name for one in NAMED]
