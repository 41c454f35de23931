"""What the tests of the engine share."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def free() -> ModuleType:
    """The module `data_free` beside this file."""
    path = Path(__file__).with_name("data_free.py")
    spec = importlib.util.spec_from_file_location("qconvert_tests_data_free", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
