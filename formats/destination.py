"""A folder that appears whole or not at all, in the place of an older one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qconvert.formats.refusal import Reason


def destination_problems(path: Path, sources: Iterable[Path], sign: str) -> list[Reason]:
    """Why a folder cannot be written as `path`: what is there is not an older output, which has a
    file called `sign`, or is what the files in `sources` are read from."""
    path = _absolute(path)
    if not path.exists():
        return []
    if path in {source.resolve().parent for source in sources} or path.resolve() in {
        source.resolve().parent for source in sources
    }:
        return [Reason(f"{path} is the model itself", "name another folder with --out")]
    if not path.is_dir():
        return [Reason(f"{path} is a file, and the output is a folder", "name another with --out")]
    found = list(path.iterdir())
    if found and not (path / sign).is_file():
        return [
            Reason(f"{path} holds other things than a model: it would be replaced",
                   "name another folder with --out, or empty it")
        ]  # fmt: skip
    inner = [one.name for one in found if one.is_dir() and not one.is_symlink()]
    if inner:
        return [
            Reason(f"{path} holds the folder {sorted(inner)[0]}: it would be replaced",
                   "name another folder with --out")
        ]  # fmt: skip
    return []


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A folder beside `path` to write into, which is renamed to `path` when the block ends well and
    removed when it does not. What was there is moved aside first and removed last."""
    path = _absolute(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.mkdir()
    try:
        yield part
        _publish(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _publish(part: Path, path: Path) -> None:
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    there = path.is_symlink() or path.exists()
    if there:
        path.rename(old)
    try:
        part.rename(path)
    except BaseException:
        if there:
            with suppress(OSError):
                old.rename(path)
        raise
    if old.is_symlink():
        old.unlink()
    elif there:
        shutil.rmtree(old, ignore_errors=True)


def _absolute(path: Path) -> Path:
    """With a name of its own, also for "." and paths that end in ".."."""
    return Path(os.path.abspath(path))  # noqa: PTH100  (links stay links)
