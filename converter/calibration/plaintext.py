"""Text files: UTF-8 or refused with the byte and line, and no more read than is needed."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from pathlib import Path

from qconvert.formats.refusal import Refused, refuse

CHUNK = 1 << 20  # bytes
WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: Path, characters: int | None = None) -> str:
    """The text of a file, or a beginning of it that has at least `characters`.

    Line ends become "\\n", and a byte order mark is dropped. `Refused` when it cannot be read, or
    what was read is not UTF-8 text.
    """
    parts: list[str] = []
    have = 0
    for chunk in chunks(path):
        parts.append(chunk)
        have += len(chunk)
        if characters is not None and have >= characters:
            break
    return "".join(parts)


def chunks(path: Path) -> Iterator[str]:
    """The text of a file, about 1 MB at a time."""
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    decoder = codecs.getincrementaldecoder("utf-8")()
    done, line = 0, 1  # bytes and line of what went through
    try:
        with path.open("rb") as file:
            while True:
                data = file.read(CHUNK)
                held = decoder.getstate()[0]  # the beginning of a character cut by the chunk
                if b"\0" in data:
                    raise _not_text(path, data, done, line)
                try:
                    text = decoder.decode(data, final=not data)
                except UnicodeDecodeError as error:
                    raise _not_utf8(path, held + data, done - len(held), line, error) from error
                text = newlines.decode(text, final=not data)
                yield text.removeprefix("\ufeff") if not done else text
                if not data:
                    return
                done += len(data)
                line += data.count(b"\n")
    except OSError as error:
        raise refuse(
            f"cannot read {path}: {error.strerror}", "name a file that can be read"
        ) from error


def is_binary(path: Path) -> bool:
    """True when a file begins as no text does."""
    try:
        with path.open("rb") as file:
            return b"\0" in file.read(8192)
    except OSError:
        return False  # reading it will say why


def _not_text(path: Path, data: bytes, done: int, line: int) -> Refused:
    at = data.index(b"\0")
    wide = not done and data.startswith(WIDE)
    what = "is UTF-16" if wide else f"is not a text: byte {done + at:,} is zero"
    number = line + data.count(b"\n", 0, at)
    return refuse(
        f"{path} {what}" + ("" if wide else f" (line {number:,})"),
        f"save it as UTF-8: iconv -f UTF-16 -t UTF-8 {path.name}" if wide else "name a text file",
    )


def _not_utf8(path: Path, data: bytes, done: int, line: int, error: UnicodeDecodeError) -> Refused:
    number = line + data.count(b"\n", 0, error.start)
    return refuse(
        f"{path} is not UTF-8: byte {done + error.start:,} is 0x{data[error.start]:02x}"
        f" (line {number:,}): {error.reason}",
        f"save it as UTF-8, from Latin-1 for instance: iconv -f LATIN1 -t UTF-8 {path.name}",
    )
