"""What lies at the top of a work folder, and whether a folder may be one."""

from __future__ import annotations

import shutil
from pathlib import Path

from qconvert.engine.aside import unwritable
from qconvert.engine.journal import NAME
from qconvert.formats.refusal import refuse

FOLDERS = ("source", "rows", "blocks", "outer")
FILES = (NAME, "lock", "tokens.npy")


def check_usable(folder: Path, *, resume: bool) -> None:
    """`Refused` when no work folder can be there; `resume`: when none was begun."""
    if folder.exists() and not folder.is_dir():
        raise refuse(f"{folder} is not a folder", "name another with --work")
    if resume and not begun(folder):
        raise refuse(
            f"there is nothing to resume in {folder}",
            "leave --resume out to begin, or name the folder with --work",
        )
    names = {one.name for one in folder.iterdir()} if folder.is_dir() else set()
    strange = sorted(n for n in names - {*FOLDERS, *FILES} if not n.endswith(".part"))
    if strange:
        raise refuse(
            f"{folder} holds something else: {', '.join(strange[:3])}",
            "name a folder that does not exist yet with --work",
        )


def forget(folder: Path) -> None:
    """Remove what was finished; job.json first, so that no death in between misleads."""
    try:
        (folder / NAME).unlink(missing_ok=True)
        for name in ("blocks", "outer", "rows"):
            shutil.rmtree(folder / name)
            (folder / name).mkdir()
    except OSError as fault:
        raise unwritable(fault, folder) from fault


def begun(folder: Path) -> bool:
    """True when a job was begun in `folder`."""
    return (folder / NAME).is_file() or any((folder / "blocks").glob("*.safetensors"))
