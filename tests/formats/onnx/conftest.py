"""The literal decoder, by its file: the tests are no packages."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def literal() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "qconvert_tests_literal_onnx", Path(__file__).with_name("literal.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
