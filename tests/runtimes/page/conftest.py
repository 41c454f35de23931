"""Made-up reports for the tests of the page."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

MADE = Path(__file__).with_name("made.py")


@pytest.fixture(scope="session")
def made() -> ModuleType:
    """The module `made`: reports by name."""
    spec = importlib.util.spec_from_file_location("qconvert_tests_made", MADE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
