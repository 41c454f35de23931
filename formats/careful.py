"""Files that may be hostile: plain ones only, of bounded size, and JSON of bounded depth and cost.

What a file makes us hold is bounded by what it really has, before any of it is parsed: a FIFO is
not waited for, `/dev/zero` is not read, and forty million empty lists are not made.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from qconvert.formats.refusal import refuse

AGAIN = "download or copy it again"
LARGEST_JSON = 256 << 20
"""Bytes. Gemma 3's tokenizer.json, among the largest there are, has 33 MiB."""
MOST_VALUES = 6_000_000
"""Objects, lists, names and values in one file; about 100 bytes of memory each. Gemma 3's
tokenizer.json has 2.6 million."""
DEEPEST = 100
_OUTSIDE = bytes(set(range(256)) - set(b'[]{}"'))
_HALF = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)


def read_file(path: Path, most: int = LARGEST_JSON) -> bytes:
    """All of a plain file of at most `most` bytes; `Refused` for any other, without waiting.
    `FileNotFoundError` where there is none."""
    try:
        with open(path, "rb", opener=_unblocked) as file:
            told = os.fstat(file.fileno())
            if not stat.S_ISREG(told.st_mode):
                raise refuse(f"{path} is not a plain file", "give a copy of the file itself")
            if told.st_size > most:
                raise refuse(f"{path} has {told.st_size:,} bytes: at most {most:,} are read", AGAIN)
            found = file.read(most + 1)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as fault:  # ValueError: a NUL in its name
        why = fault.strerror if isinstance(fault, OSError) else fault
        raise refuse(f"{path} cannot be read: {why}") from None
    if len(found) > most:
        raise refuse(f"{path} grows while it is read", AGAIN)
    return found


def is_plain(path: Path) -> bool:
    """True for a file that can be opened and read to its end, also behind links."""
    try:
        return path.is_file()
    except OSError:
        return False


def _unblocked(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_text(path: Path, most: int = LARGEST_JSON) -> str:
    """`read_file` in UTF-8; `Refused` where it is not."""
    try:
        return read_file(path, most).decode("utf-8")
    except UnicodeDecodeError as fault:
        raise refuse(f"{path} is not UTF-8 (byte {fault.start})", AGAIN) from None


def parse_json(text: bytes, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value in `text`; `ValueError`, in a few words, where it is not JSON, nested more deeply
    than any configuration is, too costly, or has half of a surrogate pair (which no file can
    hold again). `pairs`: as `object_pairs_hook` of `json.loads`."""
    values = sum(text.count(mark) for mark in (b",", b"[", b"{", b":"))
    if values > MOST_VALUES:
        raise ValueError(f"up to {values:,} values, and at most {MOST_VALUES:,} are read")
    bare = text.replace(b"\\\\", b"")
    if _HALF_MARK in bare.lower() and _has_half(bare):
        raise ValueError("half of a surrogate pair")
    if _depth(bare) > DEEPEST:
        raise ValueError(f"nested more than {DEEPEST} deep")
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError("nested too deep") from None


_HALF_MARK = b"\\ud"


def _has_half(bare: bytes) -> bool:
    return _HALF.search(bare) is not None


def _depth(bare: bytes) -> int:
    """The deepest nesting of brackets outside of strings; `bare` has no escaped backslashes."""
    marks = bare.replace(b'\\"', b"").translate(None, _OUTSIDE)
    outside = np.frombuffer(b"".join(marks.split(b'"')[::2]), np.uint8)
    steps = np.where((outside == ord("[")) | (outside == ord("{")), 1, -1)
    return int(np.cumsum(steps).max(initial=0))


def read_json(path: Path, remedy: str = AGAIN) -> Any:
    """The value in a JSON file; `Refused` where it cannot be had. `FileNotFoundError` where there
    is no file."""
    content = read_file(path)
    try:
        return parse_json(content)
    except ValueError as fault:
        raise refuse(f"{path.name} is not JSON: {fault}", remedy) from None


def read_json_object(path: Path, remedy: str) -> dict[str, Any]:
    """The object in a JSON file; `Refused` when there is none."""
    try:
        parsed = read_json(path)
    except FileNotFoundError:
        raise refuse(f"no {path.name} in {path.parent}", remedy) from None
    if not isinstance(parsed, dict):
        raise refuse(f"{path.name} is not a JSON object", AGAIN)
    return parsed
