"""The model's own tokenizer, as calibration needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from qconvert.formats.careful import read_json_object
from qconvert.formats.refusal import refuse
from qconvert.formats.tokenizer_library import load_tokenizer

SPARE = 64  # tokens at a cut that the text behind it might change


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer; what it puts in front of a text; and its settings (tokenizer_config.json)."""

    tokenizer: Tokenizer
    prefix: tuple[int, ...]
    settings: Mapping[str, Any]

    def encode(self, text: str) -> NDArray[np.int32]:
        """Tokens of `text`, nothing added; the names of special tokens in it become those."""
        return np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def begin(self, text: str, tokens: int) -> NDArray[np.int32]:
        """The first `tokens` of `encode(text)`, or all where there are fewer.

        Encodes a beginning of the text, twice as long until it is enough; the last tokens before a
        cut are not used, as they may join with what follows.
        """
        characters = 8 * (tokens + SPARE)
        while characters < len(text):
            found = self.encode(text[:characters])[:-SPARE]
            if len(found) >= tokens:
                return found[:tokens]
            characters *= 2
        return self.encode(text)[:tokens]

    def special(self) -> dict[str, str]:
        """bos_token, eos_token and the like, by name, as a chat template asks for them."""
        return {
            name: text
            for name in ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token")
            if (text := _content(self.settings.get(name))) is not None
        }


def read_vocabulary(folder: Path) -> Vocabulary:
    """The tokenizer of a model folder; `Refused` when it has none that can be read."""
    path = folder / "tokenizer.json"
    if not path.exists():
        raise refuse(
            f"{folder} has no tokenizer.json, so no text can be calibrated on",
            "add the tokenizer.json of the model, or take a data-free method: --method rtn",
        )
    try:
        tokenizer = load_tokenizer(path, "take the tokenizer.json of the model again")
    except FileNotFoundError as error:
        raise refuse(f"cannot read {path}: {error.strerror}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    settings = read_object(folder / "tokenizer_config.json")
    return Vocabulary(tokenizer, _prefix(tokenizer, settings), settings)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object, empty when there is no such file."""
    if not path.exists():
        return {}
    return read_json_object(path, "correct it, or remove it")


def _prefix(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> tuple[int, ...]:
    """What stands in front of every text: the tokenizer's own rule, or `add_bos_token`. The same
    rule as `runtimes.text.prefix`, by which an output is measured."""
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a", add_special_tokens=True).ids
    cuts = (at for at in range(len(whole)) if whole[at : at + len(plain)] == plain)
    front = whole[: next(cuts, 0)]
    adds = settings.get("add_bos_token")
    if adds is None or (adds and front):
        return tuple(front)
    name = _content(settings.get("bos_token"))
    token = tokenizer.token_to_id(name) if adds and name else None
    return () if token is None else (token,)


def _content(value: Any) -> str | None:
    found = value.get("content") if isinstance(value, Mapping) else value
    return found if isinstance(found, str) else None
