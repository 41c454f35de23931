"""Fixtures shared by all tests."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from qconvert.runtimes.machine import nvidia_gpu

# Without a GPU Triton's interpreter computes. The variable is read when a function of Triton is
# defined, its own too, and a library may import Triton at any time: so it is set before all.
if not nvidia_gpu():
    os.environ["TRITON_INTERPRET"] = "1"

TINY = Path(__file__).with_name("tiny.py")
GGML = Path(__file__).parent.parent / "benchmarks" / "ggml.py"


def load_module(path: Path) -> ModuleType:
    """A module by its file: neither the tests nor the benchmarks are packages."""
    spec = importlib.util.spec_from_file_location(f"qconvert_tests_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def ggml() -> Any:
    """`benchmarks/ggml.py`'s `Ggml`: the quantizers of llama.cpp itself."""
    return load_module(GGML).Ggml()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_model(family, **options) -> Path`: `tiny.tiny_model`, each distinct model built once.

    The folder is shared: copy it (`tiny_copy`) before changing anything in it.
    """
    module = load_module(TINY)
    built: dict[str, Path] = {}

    def build(family: str = "llama", **options: Any) -> Path:
        key = repr((family, sorted(options.items())))
        if key not in built:
            folder = tmp_path_factory.mktemp("models") / f"tiny-{family}"
            built[key] = module.tiny_model(folder, family, **options)
        return built[key]

    return build


@pytest.fixture
def tiny_copy(tiny_model: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """As `tiny_model`, but a copy of the test's own, free to be damaged."""

    def build(family: str = "llama", **options: Any) -> Path:
        source = tiny_model(family, **options)
        return Path(shutil.copytree(source, tmp_path / source.name, dirs_exist_ok=True))

    return build
