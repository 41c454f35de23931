"""Hostile files at the command line: exit code 2, a message, and nothing else."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from qconvert.cli import run

CHOSEN = [
    ("gguf", "2^64 - 1 tensors"),
    ("gguf", "an array of 2^60 strings"),
    ("gguf", "a name that is not UTF-8"),
    ("gptq", "a header of 99 million bytes"),
    ("gptq", "a pattern of exponential time"),
    ("ct", "config.json: quantization_config.config_groups list"),
    ("onnx", "two nodes that read each other"),
    ("onnx", "data above"),
    ("mlc", "a shard of the system"),
    ("mlc", "mlc-chat-config.json nested 500 deep"),
]


@pytest.mark.parametrize(("kind", "case"), CHOSEN, ids=[f"{kind} {case}" for kind, case in CHOSEN])
def test_inspect_and_check_refuse_an_output(
    kind: str,
    case: str,
    builders: ModuleType,
    copy: Callable[[str], Path],
    good: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = copy(kind)
    builders.CASES[kind][case](path)
    for words in (
        ["inspect", str(path)],
        ["check", str(path), "--against", str(good("model")), "--no-runtime"],
    ):
        capsys.readouterr()
        assert run(words) == 2
        said = capsys.readouterr().err
        assert "refused" in said
        assert "Traceback" not in said
        assert "fault of qconvert" not in said
        assert "\x1b" not in said


@pytest.mark.parametrize(
    "case",
    [
        "config.json: num_hidden_layers 10^12",
        "config.json: hidden_size zero",
        "config.json number of 5,000 digits",
        "config.json a FIFO",
        "tokenizer.json: it would abort the process",
        "a shape of huge sizes",
    ],
)
def test_convert_and_check_refuse_a_model(
    case: str,
    builders: ModuleType,
    copy: Callable[[str], Path],
    good: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    model = copy("model")
    builders.CASES["model"][case](model)
    out = tmp_path / "out.gguf"
    for words in (
        [str(model), "--to", "gguf", "--plan"],
        [str(model), "--to", "gguf", "--method", "rtn", "--out", str(out)],
        ["check", str(good("gguf")), "--against", str(model), "--no-runtime"],
    ):
        capsys.readouterr()
        assert run(words) == 2
        assert "fault of qconvert" not in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("kind", ["fifo", "loop", "nothing", "folder"])
def test_what_is_no_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "folder":
        path.mkdir()
    assert run(["inspect", str(path)]) == 2


@pytest.mark.parametrize(
    ("kind", "case"),
    [
        ("gguf", "three million strings"),
        ("gguf", "an array of 2^61 numbers"),
        ("gptq", "half a million tensors"),
        ("model", "config.json ten million lists"),
        ("onnx", "ten million empty nodes"),
    ],
)
def test_memory_and_time_are_bounded(
    kind: str, case: str, builders: ModuleType, copy: Callable[[str], Path]
) -> None:
    """In a process of its own, which reports the most memory that it ever had: imports and all,
    it stays below a gigabyte more than it takes to do nothing."""
    path = copy(kind)
    builders.CASES[kind][case](path)
    nothing, _ = measured(["inspect", str(path.parent / "absent")])
    most, said = measured(["inspect", str(path)])
    assert said["exit"] == 2
    assert most - nothing < 1 << 30


PROGRAM = """
import json, resource, sys
from qconvert.cli import run
code = run(sys.argv[1:])
most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"exit": code, "most": most}))
"""


def measured(words: list[str]) -> tuple[int, dict[str, int]]:
    """Most bytes resident, and what the program told. It is ended after a minute of computing."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM, *words],
        capture_output=True, text=True, timeout=120, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (60, 60)),
    )  # fmt: skip
    told = json.loads(done.stdout.splitlines()[-1])
    return told["most"], told
