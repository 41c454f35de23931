"""What a user calibrates on, read from disk: documents, each a text or the turns of a chat.

Files are plain text (any suffix that is not named below, one document each), `.jsonl`, `.json` (a
list) and `.parquet`; a folder is all of its files. What is read is bounded, so that a dump of
gigabytes costs no more than the rows that are wanted of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qconvert.calibration.plaintext import is_binary, read_text
from qconvert.formats.refusal import MissingRuntime, refuse

COLUMNS = "text, messages, conversations, or prompt with response or completion"
ANSWERS = ("response", "completion")
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}


@dataclass(frozen=True, slots=True)
class Turn:
    role: str  # "system", "user", "assistant", ...
    content: str


@dataclass(frozen=True, slots=True)
class Document:
    """Either a text, or the turns of a chat."""

    text: str
    turns: tuple[Turn, ...] = ()
    kind: str = ""  # documents of different kinds are mixed evenly

    @property
    def characters(self) -> int:
        return len(self.text) + sum(len(turn.content) for turn in self.turns)


@dataclass(frozen=True, slots=True)
class Documents:
    """What was found, in a fixed order."""

    all: tuple[Document, ...]
    notes: tuple[str, ...] = ()
    complete: bool = True  # False when there was more than was asked for


def read_documents(path: Path, characters: int) -> Documents:
    """The documents of a file, or of all files of a folder in sorted order.

    Reading stops after the document with which there are at least `characters`. `Refused` names
    the file, and the line or byte, that cannot be read, and what holds no document at all.
    """
    if not path.exists():
        raise refuse(
            f"no such file or folder to calibrate on: {path}",
            "name a text, .jsonl, .json or .parquet file, a folder, or take --calib default",
        )
    notes: list[str] = []
    found: list[Document] = []
    left = characters
    for file in _files(path, notes):
        for document in _documents(file, left):
            found.append(document)
            left -= document.characters
            if left <= 0:
                break
        if left <= 0:
            break
    kept = tuple(one for one in found if one.text.strip() or one.turns)
    if not kept:
        raise refuse(f"{path} is empty: there is no text in it", "name a file that holds text")
    if len(kept) < len(found):
        notes.append(f"{len(found) - len(kept):,} empty documents were left out")
    if left <= 0 and len(found) > 1:
        notes.append(f"only the first {len(found):,} documents were read; they are enough")
    return Documents(kept, tuple(notes), complete=left > 0)


def _files(path: Path, notes: list[str]) -> list[Path]:
    if not path.is_dir():
        return [path]
    try:
        inside = sorted(
            (one.relative_to(path).as_posix(), one)
            for one in path.rglob("*")
            if one.is_file() and not any(p.startswith(".") for p in one.relative_to(path).parts)
        )
    except OSError as error:
        raise refuse(
            f"cannot read the folder {path}: {error.strerror}", "name one that can be read"
        ) from error
    files = [one for _, one in inside if one.suffix.lower() in _READERS or not is_binary(one)]
    if len(files) < len(inside):
        notes.append(f"{len(inside) - len(files):,} files of {path.name} are not text: left out")
    if not files:
        raise refuse(
            f"the folder {path} holds no file to calibrate on",
            "put text, .jsonl, .json or .parquet files into it",
        )
    return files


def _documents(file: Path, characters: int) -> Iterator[Document]:
    read = _READERS.get(file.suffix.lower())
    if read is None:
        yield Document(read_text(file, characters))
    else:
        yield from read(file)


def _from_jsonl(file: Path) -> Iterator[Document]:
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise refuse(
                f"{where} is not JSON: {error}", "write one object per line, or correct the line"
            ) from error
        yield document_of(record, where)


def _lines(file: Path) -> Iterator[str]:
    """Lines of a UTF-8 file, one at a time."""
    from qconvert.calibration.plaintext import chunks

    rest = ""
    for chunk in chunks(file):
        *whole, rest = (rest + chunk).split("\n")
        yield from whole
    yield rest


def _from_json(file: Path) -> Iterator[Document]:
    try:
        records = json.loads(read_text(file))
    except ValueError as error:
        raise refuse(
            f"{file} is not JSON: {error}", "for one object per line, name it .jsonl"
        ) from error
    if not isinstance(records, list):
        raise refuse(
            f"{file} holds no list of documents",
            f"write a list of strings, or of objects with {COLUMNS}",
        )
    for number, record in enumerate(records, 1):
        yield document_of(record, f"{file}, document {number}")


def _from_parquet(file: Path) -> Iterator[Document]:
    import importlib

    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise MissingRuntime(
            "reading parquet",
            "no module pyarrow",
            "pip install 'qconvert[parquet]', or save the rows as .jsonl",
        ) from None
    try:
        number = 0
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=256):
                for record in batch.to_pylist():
                    number += 1
                    yield document_of(record, f"{file}, row {number}")
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise refuse(
            f"cannot read {file}: {error}", "write it again, or save its rows as .jsonl"
        ) from error


_READERS: Mapping[str, Callable[[Path], Iterator[Document]]] = {
    ".jsonl": _from_jsonl,
    ".ndjson": _from_jsonl,
    ".json": _from_json,
    ".parquet": _from_parquet,
}


def document_of(record: Any, where: str) -> Document:
    """One record as a document; `Refused`, naming `where`, when it has none of the columns."""
    if isinstance(record, str):
        return Document(record)
    if not isinstance(record, Mapping):
        raise refuse(f"{where} is no object but {type(record).__name__}", f"give it {COLUMNS}")
    if isinstance(record.get("text"), str):
        return Document(record["text"])
    for column in ("messages", "conversations"):
        if isinstance(record.get(column), list):
            return Document("", _turns(record[column], where))
    for column in ANSWERS:
        if isinstance(record.get("prompt"), str) and isinstance(record.get(column), str):
            turns = (Turn("user", record["prompt"]), Turn("assistant", record[column]))
            return Document("", turns)
    columns = ", ".join(map(str, list(record)[:12])) or "none"
    raise refuse(f"{where} has no column to calibrate on (it has: {columns})", f"give it {COLUMNS}")


def _turns(messages: Iterable[Any], where: str) -> tuple[Turn, ...]:
    turns = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise refuse(
                f"{where} has a message that is no object", "give each a role and a content"
            )
        role = message.get("role", message.get("from"))
        content = message.get("content", message.get("value"))
        if isinstance(content, list):  # parts, of which text alone is of use here
            content = "".join(
                str(part.get("text", "")) for part in content if isinstance(part, Mapping)
            )
        if not isinstance(role, str) or not isinstance(content, str | None):
            raise refuse(
                f"{where} has a message without role and content (or from and value)",
                'write {"role": "user", "content": "..."}',
            )
        if content:
            turns.append(Turn(ROLES.get(role, role), content))
    return tuple(turns)
