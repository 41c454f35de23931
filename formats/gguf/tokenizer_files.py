"""The tokenizer files of a checkpoint folder, read and nothing more."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qconvert.formats.refusal import refuse


@dataclass(frozen=True, slots=True)
class AddedToken:
    """One entry of `added_tokens` (tokenizer.json) or `added_tokens_decoder` (its config)."""

    id: int
    text: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False

    @classmethod
    def parse(cls, id: int, entry: Mapping[str, Any]) -> AddedToken:
        flags = ("special", "lstrip", "rstrip", "single_word", "normalized")
        return cls(id, str(entry["content"]), **{flag: bool(entry.get(flag)) for flag in flags})


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What the folder says of its tokenizer; absent files are empty or None."""

    folder: Path
    definition: Mapping[str, Any] | None  # tokenizer.json
    model: bytes | None  # tokenizer.model
    settings: Mapping[str, Any]  # tokenizer_config.json over special_tokens_map.json
    generation: Mapping[str, Any]  # generation_config.json
    added: tuple[AddedToken, ...]  # by id

    def text_of(self, name: str) -> str | None:
        """The text of a named token of the settings ("bos_token"), or None."""
        value = self.settings.get(name)
        if isinstance(value, Mapping):
            value = value.get("content")
        return value if isinstance(value, str) else None


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Read what is there; `Refused` when a file is not what its name says."""
    definition = _json(folder / "tokenizer.json") or None
    if definition is not None and not isinstance(definition.get("model"), Mapping):
        raise refuse(f"{folder / 'tokenizer.json'} has no 'model'", "save the tokenizer again")
    settings = {
        **_json(folder / "special_tokens_map.json"),
        **_json(folder / "tokenizer_config.json"),
    }
    model = folder / "tokenizer.model"
    return TokenizerFiles(
        folder,
        definition,
        model.read_bytes() if definition is None and model.is_file() else None,
        settings,
        _json(folder / "generation_config.json"),
        _added(definition, settings, _json(folder / "added_tokens.json")),
    )


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise refuse(f"{path} cannot be read: {error}", "save the tokenizer again") from error
    if not isinstance(content, dict):
        raise refuse(f"{path} is not a JSON object", "save the tokenizer again")
    return content


def _added(
    definition: Mapping[str, Any] | None,
    settings: Mapping[str, Any],
    extra: Mapping[str, Any],
) -> tuple[AddedToken, ...]:
    """tokenizer.json decides; older files add what it does not know, as transformers does."""
    listed = (definition or {}).get("added_tokens") or ()
    found = [AddedToken.parse(int(entry["id"]), entry) for entry in listed]
    known = {token.text for token in found}
    decoder = settings.get("added_tokens_decoder") or {}
    for id, entry in decoder.items():
        if entry["content"] not in known:
            found.append(AddedToken.parse(int(id), entry))
    known = {token.text for token in found}
    if definition is None:
        found += [AddedToken(int(id), text) for text, id in extra.items() if text not in known]
    return tuple(sorted(found, key=lambda token: (token.id, token.text)))
