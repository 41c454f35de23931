"""Files that an output has of its model, beside the model's own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from qconvert.runtimes.findings import Finding
from qconvert.runtimes.parity import compare, parity_strings
from qconvert.runtimes.told_files import (
    GENERATION,
    SPECIAL_MAP,
    TEMPLATES,
    TOKENIZER,
    TOKENIZER_CONFIG,
    ModelFiles,
    read_object,
)
from qconvert.runtimes.told_model import differing, shown

CULPRITS: Mapping[str, str] = {
    GENERATION: "generation_config", TOKENIZER_CONFIG: "tokenizer_config",
    SPECIAL_MAP: "special_tokens_map", **dict.fromkeys(TEMPLATES, "chat_template"),
}  # fmt: skip
"""What is named where a whole file is missing; "tokenizer" for all others."""
BY_KEY = frozenset({GENERATION, TOKENIZER_CONFIG, SPECIAL_MAP})
SECTIONS: Mapping[str, str] = {
    "model": "vocabulary or merges differ", "added_tokens": "added tokens differ",
}  # fmt: skip
"""Sections of tokenizer.json that are never spelt otherwise with the same meaning."""


def copy_findings(copies: Sequence[str], folder: Path, source: ModelFiles) -> Iterator[Finding]:
    """Of files that are missing, and of what those that are there say otherwise. Chat templates are
    compared elsewhere, whatever file they are in."""
    for name in copies:
        own, held = source.folder / name, folder / name
        if name in TEMPLATES or not own.is_file():
            if name == GENERATION and held.is_file():
                yield from _by_key(name, read_object(held), {})
            continue
        if not held.is_file():
            culprit = CULPRITS.get(name, "tokenizer")
            stage = "settings" if name in BY_KEY else "tokens"
            yield Finding("settings" if stage == "settings" else "tokens", culprit,
                          f"{name} of the model is not in the output")  # fmt: skip
        elif name in BY_KEY:
            yield from _by_key(name, read_object(held), read_object(own))
        elif name == TOKENIZER:
            yield from _tokenizer(ModelFiles(folder), source)
        elif held.read_bytes() != own.read_bytes() and not _same_json(held, own):
            yield Finding("tokens", "tokenizer", f"{name} is not the model's")


def _same_json(one: Path, other: Path) -> bool:
    if one.suffix != ".json":
        return False
    first, second = read_object(one), read_object(other)
    return bool(first) and first == second


def _by_key(name: str, held: Mapping[str, Any], due: Mapping[str, Any]) -> Iterator[Finding]:
    for key in differing(held, due):
        if key in ("chat_template", "transformers_version", "_from_model_config"):
            continue
        said = "not" if held.get(key) is None else f"{shown(held[key])}"
        own = "not said" if due.get(key) is None else shown(due[key])
        problem = f"{name}: {key} is {said} in the output and {own} in the model"
        yield Finding("settings", key, problem)


def _tokenizer(held: ModelFiles, source: ModelFiles) -> Iterator[Finding]:
    """Steps may be spelt otherwise where all texts get the same tokens; the rest may not."""
    one, other = held.definition, source.definition
    if one == other:
        return
    ours, theirs = held.tokenizer, source.tokenizer
    if theirs is None:
        if (held.folder / TOKENIZER).read_bytes() != (source.folder / TOKENIZER).read_bytes():
            yield _wrong("tokenizer.json is not the model's")
        return
    if ours is None:
        yield _wrong("tokenizer.json does not load")
        return
    for section, problem in SECTIONS.items():
        if _plain(one.get(section)) != _plain(other.get(section)):
            where = _first_difference(one.get(section), other.get(section))
            yield _wrong(f"tokenizer.json: {problem}{where}")
            return
    yield from _encodings(ours, theirs)


def _wrong(problem: str) -> Finding:
    return Finding("tokens", "tokenizer", problem)


def _plain(section: Any) -> Any:
    """Merges in one notation, absent and null options alike."""
    if not isinstance(section, Mapping):
        return section
    merges = [one if isinstance(one, str) else " ".join(one) for one in section.get("merges") or ()]
    kept = {key: value for key, value in section.items() if value not in (None, False, "")}
    return {**kept, "merges": merges}


def _first_difference(one: Any, other: Any) -> str:
    """Where two sections differ, in a few words."""
    if isinstance(one, list) and isinstance(other, list):
        for a, b in zip(one, other, strict=False):
            if a != b:
                return f": {json.dumps(a, ensure_ascii=False)[:120]}"
        return f": {len(one)} in the output, {len(other)} in the model"
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return ""
    held, due = one.get("vocab"), other.get("vocab")
    if held != due and isinstance(held, Mapping) and isinstance(due, Mapping):
        texts = [text for text in dict.fromkeys((*due, *held)) if held.get(text) != due.get(text)]
        first = texts[0]
        return (
            f": {len(texts)} tokens, such as {first!r}, which is {held.get(first)} in the output"
            f" and {due.get(first)} in the model"
        )
    merges = [_plain(part)["merges"] for part in (one, other)]
    pairs = enumerate(zip(*merges, strict=False))
    at = next((at for at, (a, b) in pairs if a != b), None)
    return "" if at is None else f": merge {at} is {merges[0][at]!r}, not {merges[1][at]!r}"


def _encodings(ours: Tokenizer, theirs: Tokenizer) -> Iterator[Finding]:
    """Of some 4,000 strings: their tokens, with what is put around them, and their text again."""
    special = [token.content for token in theirs.get_added_tokens_decoder().values()]
    strings = parity_strings(special)

    def encode(tokenizer: Tokenizer, text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=True).ids)

    found = compare(lambda text: encode(ours, text), lambda text: encode(theirs, text), strings)
    if found:
        first = min(found, key=lambda one: len(one.text))
        yield _wrong(
            f"tokenizer.json: {len(found)} of {len(strings)} strings get other tokens than from"
            f" the model's, such as {first.text!r}: {list(first.b)} became {list(first.a)}"
        )
        return
    for text in strings[::8]:
        ids = encode(theirs, text)
        if ours.decode(ids) != theirs.decode(ids):
            yield _wrong(f"tokenizer.json: tokens {ids[:8]} become other text than by the model's")
            return
