"""`qconvert check` and `bench` as people run them: options, files, exit codes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from qconvert.cli import run

Tiny = Callable[..., Path]
LITTLE = ("--length", "48", "--threads", "1", "--no-floor")
ALONE = (*LITTLE, "--windows", "2", "--no-runtime")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def model(tiny_model: Tiny) -> str:
    return str(tiny_model("llama"))


def made(model: str, out: str, *options: str) -> str:
    words = [model, "--to", "gguf", "--threads", "1", "--method", "rtn", "--out", out, *options]
    assert run(words) == 0
    return out


def load(name: str) -> Any:
    return json.loads(Path(name).read_text("utf-8"))


def test_everything_that_a_check_writes(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = made(model, "out.gguf", "--type", "Q8_0", "--manifest", "manifest.json")
    assert load("manifest.json")["checked"] is None
    Path("gates.toml").write_text('max-kl = 0.5\nmax-size = "1kB"\n', "utf-8")
    written = ["--json", "check.json", "--junit", "check.xml", "--html", "check.html"]
    words = ["check", out, "--against", model, *LITTLE, "--windows", "2", *written]
    words += ["--gate", "gates.toml", "--max-size", "3MB", "--manifest", "manifest.json"]
    assert run(words) == 0  # the flag goes before the file
    assert "PASS" in capsys.readouterr().out
    found = load("check.json")
    assert [one["gate"] for one in found["judgements"]] == ["max-kl", "max-size"]
    assert found["layers"][0]["runtime"] > 0
    assert "PASS" in Path("check.html").read_text("utf-8")
    suites = ET.parse("check.xml").getroot()
    assert suites.get("failures") == "0"
    recorded = load("manifest.json")
    assert recorded["made"]["type"] == "Q8_0"
    assert recorded["checked"]["verdict"] == "PASS"
    assert recorded["checked"]["gates"] == {"max_kl": 0.5, "max_size": 3000000.0}
    assert run(["check", out, "--manifest", "manifest.json"]) == 0
    assert not [path for path in Path().iterdir() if path.name.startswith(".")]


def test_a_changed_file_is_not_what_was_checked(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = made(model, "out.gguf", "--type", "Q8_0", "--manifest", "m.json")
    assert run(["check", out, "--manifest", "m.json"]) == 4  # nobody has checked it
    assert "never checked" in capsys.readouterr().out
    data = bytearray(Path(out).read_bytes())
    data[-1] ^= 1
    Path(out).write_bytes(data)
    assert run(["check", out, "--manifest", "m.json", "--json", "found.json"]) == 1
    assert load("found.json")["findings"][0]["culprit"] == out
    assert run(["check", out, "--against", model, *ALONE, "--manifest", "m.json"]) == 1
    assert load("m.json")["checked"]["verdict"] == "FAIL"


def test_a_straddled_gate_is_inconclusive(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = made(model, "out.gguf", "--type", "Q4_0")
    words = ["check", out, "--against", model, *ALONE]
    assert run([*words, "--json", "found.json"]) == 0
    mean = load("found.json")["quantization"]["kl_mean"]
    asked = [*words, "--max-kl", str(mean * 1.01)]
    assert [run(asked), run(asked)] == [4, 4]
    told = capsys.readouterr().out
    assert "INCONCLUSIVE" in told
    assert "would decide" in " ".join(told.split())
    assert run([*words, "--max-kl", str(mean * 10)]) == 0
    assert run([*words, "--max-kl", str(mean / 10)]) == 1


def test_several_outputs_are_one_trade_off(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    outs = [made(model, f"{kind}.gguf", "--type", kind) for kind in ("Q8_0", "Q4_0")]
    words = ["check", *outs, "--against", model, *ALONE, "--max-size", "1.2MB"]
    assert run([*words, "--json", "all.json", "--html", "all.html", "--junit", "all.xml"]) == 1
    verdicts = [one["verdict"] for one in load("all.json")["outputs"]]
    assert verdicts == ["FAIL", "PASS"]  # Q8_0 is larger: the worst decides
    shown = capsys.readouterr().out
    assert all(out in shown for out in outs)
    page = Path("all.html").read_text("utf-8")
    assert all(out in page for out in outs)
    assert len(ET.parse("all.xml").getroot().findall("testsuite")) == 2


def test_codes_are_those_of_the_work_folder(model: str, tmp_path: Path) -> None:
    kept = ["--calib-rows", "4", "--calib-length", "32", "--work", "kept", "--keep-work"]
    words = [model, "--to", "gguf", "--type", "Q4_0", "--threads", "1", "--method", "gptq"]
    assert run([*words, "--out", "out.gguf", *kept]) == 0
    checked = ["check", "out.gguf", "--against", model, *ALONE, "--work", "kept"]
    assert run(checked) == 0
    other = made(model, "other.gguf", "--type", "Q4_0")  # nearest codes in place of GPTQ's
    assert run(["check", other, *checked[2:], "--json", "found.json"]) == 1
    first = load("found.json")["findings"][0]
    assert first["stage"] == "bytes"
    assert "work folder" in first["problem"]


def test_what_cannot_be_checked_is_refused_at_once(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = made(model, "out.gguf", "--type", "Q8_0")
    shutil.copy(out, "copy.gguf")
    capsys.readouterr()
    words = ["--no-runtime", "--runtime", "llamacpp", "--min-speedup", "1.5"]
    assert run(["check", out, out, "--against", "nowhere", "--manifest", "m", *words]) == 2
    told = capsys.readouterr().err
    for part in ("contradict", "nothing to time", "of one output", "named twice", "nowhere"):
        assert part in told
    assert run(["check", out]) == 2
    assert "--against MODEL" in capsys.readouterr().err
    assert run(["check", out, "--against", model, "--min-top1", "90"]) == 2
    assert "a share from 0 to 1" in capsys.readouterr().err
    for option in ("--html", "--manifest"):
        assert run(["check", out, "--against", model, option, "nowhere/x"]) == 2
        assert "no folder" in capsys.readouterr().err
    assert run([model, "--to", "gguf", "--plan", "--manifest", "m"]) == 2
    assert "--manifest" in capsys.readouterr().err


def test_help_shows_gates_in_a_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.index("Gates:") < shown.index("--max-kl NATS") < shown.index("Runtime:")


def test_bench_beside_the_source(model: str) -> None:
    out = made(model, "out.gguf", "--type", "Q8_0")
    few = ["--prompt", "8,16", "--generate", "4", "--repetitions", "2", "--threads", "1"]
    assert run(["bench", out, "--against", model, *few, "--json", "found.json"]) == 0
    found = load("found.json")
    assert [one["prompt_tokens"] for one in found["batches"]] == [8, 16]
    assert found["speedups"][0]["generate"]["low"] <= found["speedups"][0]["generate"]["high"]
    assert found["beside"]["file"]["types"] == {"F32": found["beside"]["file"]["types"]["F32"]}
