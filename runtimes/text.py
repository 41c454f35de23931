"""The text that a model is measured on: windows of tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from qconvert.formats.careful import read_json_object
from qconvert.formats.model_shapes import SETTINGS
from qconvert.formats.refusal import refuse
from qconvert.formats.shapes import check
from qconvert.formats.tokenizer_library import load_tokenizer

DEFAULT_TEXT = "wikitext-2-test.txt"  # see data/LICENSE.md

Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Text:
    name: str
    content: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Windows:
    """`count` consecutive pieces of a text, each of `length` tokens, `prefix` included."""

    tokens: tuple[tuple[int, ...], ...]
    text: Text
    prefix: tuple[int, ...]  # what the tokenizer puts in front of a text: () or (BOS,)

    @property
    def length(self) -> int:
        return len(self.tokens[0])


def read_text(path: Path | None) -> Text:
    """The UTF-8 text at `path`, or the package's own excerpt of wikitext-2 test."""
    if path is None:
        own = files("qconvert.runtimes") / "data" / DEFAULT_TEXT
        return Text(f"{DEFAULT_TEXT} (of qconvert)", own.read_text("utf-8"))
    try:
        return Text(path.name, path.read_text("utf-8"))
    except OSError as error:
        raise refuse(f"cannot read the text {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise refuse(f"the text {path} is not UTF-8 (byte {error.start})") from error


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """tokenizer.json of a model folder, without truncation or padding; None when there is none."""
    path = folder / "tokenizer.json"
    if not path.exists():
        return None
    try:
        tokenizer = load_tokenizer(path, "take the tokenizer.json of the model again")
    except FileNotFoundError:
        return None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def encoder(tokenizer: Tokenizer) -> Encode:
    """Tokens of a text, nothing added in front or behind."""

    def encode(text: str) -> Sequence[int]:
        found: Sequence[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return found

    return encode


def prefix(folder: Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    """What stands in front of every text: the tokenizer's own rule, or `add_bos_token`."""
    settings = _settings(folder)
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a", add_special_tokens=True).ids
    front = next(
        (whole[:at] for at in range(len(whole)) if whole[at : at + len(plain)] == plain), []
    )
    adds = settings.get("add_bos_token")
    if adds is None or (adds and front):
        return tuple(front)
    bos = settings.get("bos_token")
    name = bos.get("content") if isinstance(bos, dict) else bos
    token = tokenizer.token_to_id(name) if adds and name else None
    return () if token is None else (token,)


def cut(
    text: Text, encode: Encode, *, count: int, length: int, prefix: Sequence[int] = ()
) -> Windows:
    """The first `count` windows of `text`; `Refused` when it is too short for them."""
    own = length - len(prefix)
    if own < 2:
        raise refuse(f"windows of {length} tokens are too short to predict anything")
    needed = count * own
    tokens = encode(text.content[: 16 * needed])
    if len(tokens) < needed:
        tokens = encode(text.content)
    if len(tokens) < needed:
        raise refuse(
            f"the text {text.name} has {len(tokens)} tokens, and {count} windows of {length} need"
            f" {needed}",
            f"take a longer text, or --windows {max(1, len(tokens) // own)}"
            if len(tokens) >= own
            else f"take a longer text, or --length {max(2, len(tokens) // count)}",
        )
    pieces = (tokens[start : start + own] for start in range(0, needed, own))
    front = tuple(prefix)
    return Windows(tuple(front + tuple(piece) for piece in pieces), text, front)


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    if not path.exists():
        return {}
    found = read_json_object(path, "correct it, or remove it")
    check(found, SETTINGS, str(path), "correct it, or remove it")
    return found
