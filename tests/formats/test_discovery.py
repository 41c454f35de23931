"""Finding what a package offers by looking into its modules."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from qconvert.formats.discovery import offered

SOURCE = "class Thing:\n    name = {name!r}\nTHING = Thing()\n"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "offering"
    (folder / "deep").mkdir(parents=True)
    for path in (folder, folder / "deep"):
        (path / "__init__.py").touch()
    (folder / "b.py").write_text(SOURCE.format(name="second"))
    (folder / "a.py").write_text(SOURCE.format(name="first"))
    (folder / "none.py").touch()
    (folder / "deep" / "core.py").write_text(SOURCE.format(name="third"))
    monkeypatch.syspath_prepend(tmp_path)
    for name in [one for one in sys.modules if one.partition(".")[0] == "offering"]:
        monkeypatch.delitem(sys.modules, name)
    return folder


def test_modules_are_found_in_their_order(package: Path) -> None:
    assert list(offered("offering", "THING")) == ["first", "second"]


def test_packages_are_looked_into_where_they_have_it(package: Path) -> None:
    assert list(offered("offering", "THING", inside="core")) == ["first", "second", "third"]
    assert list(offered("offering", "THING", inside="other")) == ["first", "second"]


def test_two_of_one_name_are_a_fault(package: Path) -> None:
    (package / "c.py").write_text(SOURCE.format(name="first"))
    with pytest.raises(RuntimeError, match="two modules of offering"):
        offered("offering", "THING")
