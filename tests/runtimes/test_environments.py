"""Environments of runtimes: what would be run, what state they are in, and builds that fail.

The builds here are real, of a recipe whose commands need no network.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qconvert.cli import run
from qconvert.formats.refusal import MissingRuntime, Refused
from qconvert.runtimes import environments, llamacpp, machine, tensorrt_llm, vllm
from qconvert.runtimes.edge_llm import loader as edge_llm
from qconvert.runtimes.environments import VARIABLE, Environment, Recipe, environment
from qconvert.runtimes.process import BOOTSTRAP

MAKEFILE = Path(__file__).parents[2] / "Makefile"
PLAIN = Recipe("plain", (("--version",), ("list",)), "pip", 1_000_000)
FAILING = replace(PLAIN, commands=(("--version",), ("no-such-command",), ("list",)))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All environments in a folder of the test's own, whose name has a space."""
    folder = tmp_path / "my runtimes"
    monkeypatch.setenv(VARIABLE, str(folder))
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """One finished environment, to be copied."""
    place = Environment(tmp_path_factory.mktemp("built") / "plain")
    environments.build(PLAIN, place, lambda line: None)
    return place


@pytest.fixture
def copied(built: Environment, here: Path) -> Environment:
    place = environment("plain")
    shutil.copytree(built.folder, place.folder, symlinks=True)
    shutil.copy(built.log, place.log)
    return place


def test_the_place_follows_the_variables(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert environments.root() == here
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert environments.root() == tmp_path / "qconvert" / "runtimes"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert environments.root() == Path.home() / ".cache" / "qconvert" / "runtimes"


def test_a_build_is_marked_when_it_is_whole(built: Environment) -> None:
    told = built.marker()
    assert told["package"] == "pip"
    assert told["version"] == told["versions"]["pip"]
    log = built.log.read_text("utf-8")
    assert log.count("$ ") == 3  # the environment itself, and the recipe's two
    assert "pip " in log
    assert built.state([PLAIN]) == "ready"
    assert built.lack([replace(PLAIN, package="x"), PLAIN]) is None  # either recipe will do


def test_states(copied: Environment) -> None:
    assert copied.state([PLAIN]) == "ready"
    other = replace(PLAIN, commands=(("--help",),))
    assert copied.state([other]) == "outdated"
    assert "other versions" in (copied.lack([other]) or "")
    marker = copied.folder / environments.MARKER
    text = marker.read_text("utf-8")
    marker.write_text(text[: len(text) // 2], encoding="utf-8")
    assert copied.state([PLAIN]) == "unfinished"
    marker.write_text(text, encoding="utf-8")
    copied.python.unlink()
    assert copied.state([PLAIN]) == "unfinished"
    assert copied.remove()
    assert copied.state([PLAIN]) == "absent"
    assert not copied.log.exists()
    assert not copied.remove()


def test_a_failing_command_is_told_with_its_last_words(copied: Environment) -> None:
    """And what was there before is not taken for whole."""
    told: list[str] = []
    with pytest.raises(MissingRuntime) as raised:
        environments.build(FAILING, copied, told.append)
    assert len(told) == 3
    message = str(raised.value)
    assert "-m pip --disable-pip-version-check no-such-command" in message
    assert 'ERROR: unknown command "no-such-command"' in message
    assert "qconvert runtimes install plain" in message
    assert "unknown command" in copied.log.read_text("utf-8")
    assert copied.state([FAILING]) == "unfinished"


def test_what_this_machine_cannot_hold_is_refused_at_once(copied: Environment) -> None:
    impossible = replace(PLAIN, nbytes=10**18, systems=("Plan9 vax",), newest_python=(3, 10))
    with pytest.raises(Refused) as raised:
        environments.build(impossible, copied, lambda line: None)
    assert len(raised.value.reasons) == 3
    assert VARIABLE in str(raised.value)
    assert copied.state([PLAIN]) == "ready"  # untouched


def test_a_gpu_or_an_older_python_may_be_what_is_missing(
    copied: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "nvidia_gpu", lambda: False)
    impossible = replace(PLAIN, oldest_python=(3, 90), newest_python=(3, 99), needs_gpu=True)
    with pytest.raises(Refused) as raised:
        environments.refuse_impossible(impossible, copied)
    python, gpu = raised.value.reasons
    assert "Python 3.90 to 3.99" in python.remedy
    assert "none is at hand" in gpu.problem
    monkeypatch.setattr(machine, "nvidia_gpu", lambda: True)
    environments.refuse_impossible(replace(PLAIN, needs_gpu=True), copied)


def test_recipes_are_pinned() -> None:
    for recipe in (vllm.CPU, vllm.GPU, llamacpp.RECIPE, tensorrt_llm.RECIPE, edge_llm.RECIPE):
        for words in recipe.commands:
            if words[0] == "install":
                assert all("==" in word for word in words[1:] if not word.startswith("-"))
    for recipe in (vllm.CPU, llamacpp.RECIPE, edge_llm.RECIPE):
        pins = environments._pins(recipe.pins).splitlines()
        lines = [line for line in pins if not line.startswith("#")]
        assert all(line.count("==") == 1 for line in lines)
        names = {line.split("==")[0].lower().replace("_", "-") for line in lines}
        assert recipe.package in names
    assert f"torch=={vllm.TORCH}" in environments._pins(vllm.CPU.pins).splitlines()
    pins = environments._pins(edge_llm.RECIPE.pins).replace("_", "-").splitlines()
    assert {f"{name}=={release}" for name, release in edge_llm.PINNED.items()} <= set(pins)


def test_a_change_of_pins_outdates(monkeypatch: pytest.MonkeyPatch) -> None:
    before = vllm.CPU.fingerprint
    assert before == vllm.CPU.fingerprint
    assert before != vllm.GPU.fingerprint
    assert before != replace(vllm.CPU, environment={"A": "b"}).fingerprint
    monkeypatch.setattr(environments, "_pins", lambda name: "torch==1.0")
    assert vllm.CPU.fingerprint != before


def test_llamacpp_is_built_as_the_makefile_builds_it() -> None:
    text = MAKEFILE.read_text("utf-8")
    flags = llamacpp.RECIPE.environment["CMAKE_ARGS"].split()
    assert all(flag.removeprefix("-D").split("=")[0] in text for flag in flags)
    off = next(line for line in text.splitlines() if line.startswith("LLAMA_OFF"))
    assert {f"-D{name}=OFF" for name in off.split(":=")[1].split()} <= set(flags)


def test_the_users_own_flags_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_CUDA=ON")
    last = environments.commands(llamacpp.RECIPE, environment("llamacpp"))[-1]
    assert last.environment["CMAKE_ARGS"].endswith("-U__AMX_INT8__ -DGGML_CUDA=ON")


def test_a_dry_run_prints_and_does_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["runtimes", "install", "vllm", "llamacpp", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert lines[0].startswith(sys.executable)
    assert "vllm" in lines[1]
    assert "uninstall -y torchvision" in lines[2]
    assert "CMAKE_ARGS=" in lines[4]
    assert not here.exists()


@pytest.fixture
def plain_only(monkeypatch: pytest.MonkeyPatch) -> Callable[[Recipe], None]:
    def use(recipe: Recipe) -> None:
        monkeypatch.setattr(vllm, "CPU", replace(recipe, name="vllm"))
        monkeypatch.setattr(vllm.machine, "nvidia_gpu", lambda: False)

    return use


def test_the_commands_install_list_and_remove(
    plain_only: Callable[[Recipe], None], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain_only(PLAIN)
    assert run(["runtimes", "install", "vllm"]) == 0
    assert "vllm is installed: pip" in capsys.readouterr().out
    assert run(["runtimes", "install", "vllm"]) == 0
    assert "$ " not in capsys.readouterr().out  # nothing is run again
    assert run(["runtimes", "remove", "vllm"]) == 0
    assert not (here / "vllm").exists()
    assert run(["runtimes", "--json", "-"]) == 0
    listed = json.loads(capsys.readouterr().out.partition("\n")[2])["runtimes"]
    (one,) = [one for one in listed if one["name"] == "vllm"]
    assert [one["computes"] for one in listed if one["name"] == "edge-llm"] == [False]
    assert one["computes"]
    assert one["reason"] == "not installed"
    assert one["install"] == "qconvert runtimes install vllm"


def test_a_failing_installation_is_a_broken_environment(
    plain_only: Callable[[Recipe], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain_only(PLAIN)
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    assert run(["runtimes", "install", "vllm"]) == 3
    assert "exit code 1" in capsys.readouterr().err
    assert run(["runtimes", "install", "wllm"]) == 2
    known = capsys.readouterr().err.partition("known: ")[2]
    assert {"edge-llm", "llamacpp", "tensorrt-llm", "vllm"} <= set(known.strip().split(", "))


def test_a_worker_needs_nothing_of_ours_installed(built: Environment) -> None:
    """In an environment with nothing but pip, the modules that need no numpy are found."""
    program = (
        "import runpy, sys, pathlib; at = pathlib.Path(sys.argv[1]);"
        "runpy.run_path(str(at))['make_importable'](at.parent.parent);"
        "import qconvert.runtimes.machine as m, qconvert.formats.refusal as r;"
        "print(m.peak_bytes() > 0, 'numpy' in sys.modules)"
    )
    done = subprocess.run(
        [str(built.python), "-P", "-c", program, str(BOOTSTRAP)],
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True, text=True, check=True, cwd="/",
    )  # fmt: skip
    assert done.stdout.split() == ["True", "False"]
