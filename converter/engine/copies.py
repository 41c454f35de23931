"""The small files of a model's folder that stay with a job: what targets read besides weights."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from qconvert.engine.aside import keep, unwritable
from qconvert.formats.refusal import Reason, raise_if_any, refuse

FOLDERS = (".", "additional_chat_templates")
KINDS = (".json", ".jinja", ".model", ".txt", ".md", ".tiktoken")
INDEX = ".index.json"  # of weights that are not copied


def copy_files(model: Path, place: Path) -> dict[str, str]:
    """Copy configuration, tokenizer, chat templates and card of `model` into a folder of its name
    in `place`; path -> sha256. Copies that are right already are left alone."""
    folder = place / (model.resolve().name or "model")
    found = {}
    try:
        _forget_others(place, folder.name)
        for file in _files(model):
            copy = folder / file.relative_to(model)
            copy.parent.mkdir(parents=True, exist_ok=True)
            content = _content(file)
            keep(copy, content)
            found[copy.relative_to(folder).as_posix()] = hashlib.sha256(content).hexdigest()
    except OSError as fault:
        raise unwritable(fault, folder) from fault
    return found


def _files(model: Path) -> Iterator[Path]:
    for name in FOLDERS:
        folder = model / name
        if folder.is_dir():
            yield from sorted(
                file
                for file in folder.iterdir()
                if file.suffix in KINDS
                and not file.name.startswith(".")
                and not file.name.endswith(INDEX)
                and file.is_file()
            )


def _forget_others(place: Path, name: str) -> None:
    """The model's folder may have been renamed since."""
    for other in place.iterdir() if place.is_dir() else ():
        if other.name != name:
            shutil.rmtree(other)


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as fault:
        raise refuse(f"{file} cannot be read: {fault.strerror}") from fault


def copied_folder(place: Path, files: Mapping[str, str]) -> Path:
    """The folder that `copy_files` filled; `Refused` unless every copy is as it was."""
    folders = [one for one in place.iterdir() if one.is_dir()] if place.is_dir() else []
    if len(folders) != 1:
        raise refuse(f"{place} does not hold one folder", _AGAIN)
    reasons = []
    for name, digest in files.items():
        copy = folders[0] / name
        if not copy.is_file() or hashlib.sha256(_content(copy)).hexdigest() != digest:
            reasons.append(Reason(f"{copy} is missing or was changed", _AGAIN))
    raise_if_any(reasons)
    return folders[0]


_AGAIN = "give the command that made the folder again: it copies the file anew"
