"""The small files of a model, read plainly: what they name, add, generate and render."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from qconvert.formats.careful import read_json, read_text
from qconvert.formats.refusal import Refused

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_MAP = "special_tokens_map.json"
GENERATION = "generation_config.json"
JINJA = "chat_template.jinja"
OLD_TEMPLATE = "chat_template.json"
DEFAULT = "default"
TEMPLATES = frozenset({JINJA, OLD_TEMPLATE})


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none that can be read."""
    try:
        found = read_json(path)
    except (OSError, Refused):
        return {}
    return found if isinstance(found, dict) else {}


def _jinja(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, Refused):
        return ""


@dataclass(frozen=True)
class ModelFiles:
    """Of a folder, and what a configuration says of tokens where they say nothing."""

    folder: Path
    config: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def definition(self) -> dict[str, Any]:
        """tokenizer.json"""
        return read_object(self.folder / TOKENIZER)

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """None where there is none, or it does not load."""
        if not self.definition:
            return None
        try:
            found = Tokenizer.from_file(str(self.folder / TOKENIZER))
        except BaseException as fault:  # its own kinds of errors, and panics of Rust
            if isinstance(fault, Exception) or type(fault).__name__ == "PanicException":
                return None
            raise
        found.no_truncation()
        found.no_padding()
        return found

    @cached_property
    def settings(self) -> dict[str, Any]:
        """tokenizer_config.json, with special_tokens_map.json where it is silent."""
        folder = self.folder
        return {**read_object(folder / SPECIAL_MAP), **read_object(folder / TOKENIZER_CONFIG)}

    @cached_property
    def generation(self) -> dict[str, Any]:
        return read_object(self.folder / GENERATION)

    def text_of(self, name: str) -> str | None:
        """Of a named token: "bos_token"."""
        value = self.settings.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        return value if isinstance(value, str) else None

    def id_of(self, name: str) -> int | None:
        """Of a named token of the tokenizer; None where it names none, or that is no token."""
        text = self.text_of(name)
        if text is None or self.tokenizer is None:
            return None
        found = self.tokenizer.token_to_id(text)
        return None if found is None else int(found)

    def ids_of_model(self, key: str) -> tuple[int, ...]:
        """Ids under a key of generation_config.json, or of config.json."""
        for said in (self.generation, self.config):
            value = said.get(key)
            if value is not None and not isinstance(value, bool):
                listed = value if isinstance(value, list | tuple) else [value]
                return tuple(int(one) for one in listed if isinstance(one, int) and one >= 0)
        return ()

    @cached_property
    def stops(self) -> tuple[int, ...]:
        """Where generation stops."""
        found = self.ids_of_model("eos_token_id")
        own = self.id_of("eos_token")
        return found or (() if own is None else (own,))

    def added_around(self) -> tuple[bool, bool] | None:
        """Whether tokens are put before and behind a text, by the post-processor alone; None
        without a tokenizer."""
        if self.tokenizer is None:
            return None
        plain = self.tokenizer.encode("a", add_special_tokens=False).ids
        whole = self.tokenizer.encode("a", add_special_tokens=True).ids
        starts = (at for at in range(len(whole)) if whole[at : at + len(plain)] == plain)
        at = next(starts, 0)
        return at > 0, at + len(plain) < len(whole)

    @cached_property
    def templates(self) -> dict[str, str]:
        """Name -> jinja, "default" among them if there is any; files win over the settings."""
        found = _named(read_object(self.folder / TOKENIZER_CONFIG).get("chat_template"))
        found |= _named(read_object(self.folder / OLD_TEMPLATE).get("chat_template"))
        for path in sorted((self.folder / "additional_chat_templates").glob("*.jinja")):
            found[path.stem] = _jinja(path)
        if (self.folder / JINJA).is_file():
            found[DEFAULT] = _jinja(self.folder / JINJA)
        return found


def _named(value: Any) -> dict[str, str]:
    if isinstance(value, str):
        return {DEFAULT: value}
    if isinstance(value, dict):
        return {str(name): str(text) for name, text in value.items()}
    listed = value if isinstance(value, list) else []
    return {str(one.get("name")): str(one.get("template")) for one in listed
            if isinstance(one, dict)}  # fmt: skip
