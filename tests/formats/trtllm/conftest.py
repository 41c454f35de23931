"""Folders of tiny models, and the independent decoder: tests are no package."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from qconvert.asked import Asked
from qconvert.formats.target import Request
from qconvert.pipeline import convert

Write = Callable[..., Path]


def beside(name: str) -> ModuleType:
    """The module of this name in this folder."""
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"qconvert_tests_trtllm_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for it there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def decoder() -> ModuleType:
    return beside("decoder")


@pytest.fixture(scope="session")
def simulate() -> ModuleType:
    return beside("simulate")


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Path]) -> Write:
    """`written(scheme, to="trtllm", family="llama", method="rtn", config={}, **request)`: the
    folder of a tiny bfloat16 model, each distinct one written once. Copy before changing it."""
    known: dict[str, Path] = {}

    def write(
        scheme: str,
        to: str = "trtllm",
        family: str = "llama",
        method: str = "rtn",
        config: tuple[tuple[str, Any], ...] = (),
        **more: Any,
    ) -> Path:
        key = repr((scheme, to, family, method, config, sorted(more.items())))
        if key not in known:
            asked = Asked(method=method, calib_rows=4, calib_length=32, compute="float32")
            model = tiny_model(family, dtype="bfloat16", **dict(config))
            out = tmp_path_factory.mktemp("trtllm") / "out"
            request = Request(scheme=scheme, **more)
            known[key] = (
                convert(model, to, out=out, request=request, asked=asked, threads=1).files[0].parent
            )
        return known[key]

    return write


@pytest.fixture(scope="session")
def source_of(tiny_model: Callable[..., Path]) -> Callable[..., Path]:
    """The model folder that `written` takes for the same family and config."""

    def find(family: str = "llama", config: tuple[tuple[str, Any], ...] = ()) -> Path:
        return tiny_model(family, dtype="bfloat16", **dict(config))

    return find
