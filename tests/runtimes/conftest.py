"""Fixtures of the runtime tests: a tiny model, its files, and workers that misbehave on request."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qconvert.asked import Asked
from qconvert.checkpoint import Checkpoint, open_checkpoint
from qconvert.pipeline import convert
from qconvert.runtimes.llamacpp import RUNTIME, LlamaCpp
from qconvert.runtimes.process import Launch

STRANGE_WORKER = """
import os, sys, time
import numpy as np
from qconvert.runtimes.protocol import Answer, Service, WorkerError

def echo(*arrays, **arguments):
    print("printed by a library")  # must not reach the protocol
    return Answer(arguments, arrays)

def crash():
    print("GGML_ASSERT(x > 0) failed", file=sys.stderr, flush=True)
    for number in range(20):
        print(f"frame #{number}: <unknown function> + 0x4dd986", file=sys.stderr, flush=True)
    os.abort()

def leave():
    os._exit(7)

def sleep(seconds):
    time.sleep(seconds)
    return Answer()

def start():
    import subprocess
    return Answer(subprocess.Popen(["sleep", "100"]).pid)

def error(kind):
    raise WorkerError(kind, "it cannot", "do this")

Service({"echo": echo, "crash": crash, "leave": leave, "sleep": sleep, "start": start,
         "error": error}).run()
"""


@pytest.fixture(scope="session")
def runtime() -> LlamaCpp:
    """llama.cpp. Without it these tests fail: a skipped proof is none. `make setup` builds it."""
    return RUNTIME


@pytest.fixture
def source(tiny_model: Callable[..., Path]) -> Checkpoint:
    return open_checkpoint(tiny_model("llama"))


@pytest.fixture(scope="session")
def tiny_gguf(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """`tiny_gguf("Q8_0", "llama") -> Path`: each file written once."""
    folder = tmp_path_factory.mktemp("gguf")

    def build(type: str = "Q8_0", family: str = "llama") -> Path:
        path = folder / f"tiny-{family}-{type}.gguf"
        if not path.exists():
            convert(tiny_model(family), type=type, out=path, threads=1, asked=Asked(method="rtn"))
        return path

    return build


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """Starts the strange worker."""
    (tmp_path / "strange_worker.py").write_text(STRANGE_WORKER, encoding="utf-8")
    environment = {"PYTHONPATH": str(tmp_path)}
    return Launch("strange", "strange_worker", "pip install strange", environment, timeout=60.0)


@pytest.fixture
def prose(tmp_path: Path) -> Path:
    """A text of some ten thousand tokens."""
    path = tmp_path / "prose.txt"
    path.write_text("The quick brown fox jumps over the lazy dog, twice. " * 400, encoding="utf-8")
    return path
