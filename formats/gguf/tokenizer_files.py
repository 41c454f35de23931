"""The tokenizer files of a checkpoint folder, read and nothing more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qconvert.formats.careful import read_file, read_json_object
from qconvert.formats.model_shapes import ADDED, GENERATION, SETTINGS, TOKENIZER
from qconvert.formats.refusal import refuse
from qconvert.formats.shapes import Shape, check

AGAIN = "save the tokenizer again"


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
    definition = _json(folder / "tokenizer.json", TOKENIZER) or None
    settings = {
        **_json(folder / "special_tokens_map.json", SETTINGS),
        **_json(folder / "tokenizer_config.json", SETTINGS),
    }
    model = folder / "tokenizer.model"
    return TokenizerFiles(
        folder,
        definition,
        read_file(model) if definition is None and model.is_file() else None,
        settings,
        _json(folder / "generation_config.json", GENERATION),
        _added(definition, settings, _json(folder / "added_tokens.json", ADDED)),
    )


def _json(path: Path, shape: Shape) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content = read_json_object(path, AGAIN)
    if content:
        check(content, shape, str(path), AGAIN)
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
    odd = [id for id in decoder if not (id.isascii() and id.isdigit() and len(id) < 8)]
    if odd:
        raise refuse(f"tokenizer_config.json: added_tokens_decoder has the id {odd[0]!r}", AGAIN)
    for id, entry in decoder.items():
        if entry["content"] not in known:
            found.append(AddedToken.parse(int(id), entry))
    known = {token.text for token in found}
    if definition is None:
        found += [AddedToken(int(id), text) for text, id in extra.items() if text not in known]
    return tuple(sorted(found, key=lambda token: (token.id, token.text)))
