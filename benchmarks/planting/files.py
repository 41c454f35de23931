"""A copy of an output that shares every file with the good one until that file is changed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class Inapplicable(Exception):
    """The fault cannot be planted in this output: its types or shapes leave no room for it."""


@dataclass(frozen=True, slots=True)
class Files:
    """The files of a copy, a folder or a single file, by their names."""

    path: Path  # what is checked: the folder or the file
    single: bool

    @property
    def folder(self) -> Path:
        return self.path.parent if self.single else self.path

    def names(self) -> list[str]:
        """Every file, sorted."""
        return sorted(one.name for one in self.folder.iterdir() if one.is_file())

    def has(self, name: str) -> bool:
        return (self.folder / name).exists()

    def read(self, name: str) -> Path:
        """For reading alone."""
        return self.folder / name

    def own(self, name: str) -> Path:
        """For changing in place: the link to the good file is broken first."""
        path = self.folder / name
        if path.stat().st_nlink > 1:
            aside = path.with_name(path.name + ".own")
            shutil.copyfile(path, aside)
            aside.replace(path)
        return path

    def remove(self, name: str) -> None:
        (self.folder / name).unlink()

    def write(self, name: str, content: bytes) -> None:
        """Replace or add a file; the good one keeps its bytes."""
        (self.folder / name).unlink(missing_ok=True)
        (self.folder / name).write_bytes(content)

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text("utf-8"))

    def edit_json(self, name: str, change: Callable[[Any], None]) -> None:
        """Rewrite a JSON file with what `change` does to it; refused when it does nothing."""
        if not self.has(name):
            raise Inapplicable(f"there is no {name}")
        content = self.json(name)
        before = json.dumps(content)
        change(content)
        after = json.dumps(content)
        if before == after:
            raise Inapplicable(f"{name} would stay as it is")
        self.write(name, json.dumps(content, ensure_ascii=False, indent=2).encode() + b"\n")


def linked(good: Path, place: Path) -> Files:
    """A copy of `good`, a folder or a file with a folder of its own, in the new folder `place`, of
    hard links."""
    single = good.is_file()
    place.mkdir(parents=True)
    for source in sorted((good.parent if single else good).iterdir()):
        link(source, place / source.name)
    return Files(place / good.name if single else place, single)


def link(source: Path, to: Path) -> None:
    """A hard link, or a copy where the file system has none."""
    try:
        os.link(source, to)
    except OSError:
        shutil.copyfile(source, to)
