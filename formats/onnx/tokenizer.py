"""tokenizer.json in words that onnxruntime-genai reads as Hugging Face's tokenizers do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qconvert.formats.careful import read_json
from qconvert.formats.model_shapes import TOKENIZER
from qconvert.formats.refusal import Refused

NAME = "tokenizer.json"
RESPELLED = (
    "tokenizer.json spells its steps Digits and ByteLevel as regular expressions, with the same"
    " tokens: onnxruntime-genai would read them otherwise"
)
MISREAD = (
    "onnxruntime-genai reads the step Digits of tokenizer.json otherwise than tokenizers do: digits"
    " other than 0 to 9, and white space before numbers, may get other tokens"
)

BYTE_LEVEL = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""By which ByteLevel splits, GPT-2's pattern: huggingface/tokenizers, byte_level.rs."""
Steps = list[dict[str, Any]]


def respelled(path: Path) -> bytes | None:
    """The file with `Digits` spelt as `Split` by \\p{N}, and the pattern of the `ByteLevel` behind
    it spelt out; None where there are no digits to split off, or no such spelling is known.

    `Digits` isolates the characters that Unicode calls numeric, and `ByteLevel` then splits what
    lies between. onnxruntime-genai 0.18.0 takes them for one pattern, and for ASCII digits alone:
    of "1  2" and of "a²" it makes other tokens. Beside a `Split` it forgets ByteLevel's pattern.
    """
    found = _read(path)
    steps = list(_steps(found))
    known = [_spelt(one) for one in steps]
    if not _splits_digits(steps) or any(one is None for one in known):
        return None
    spelt = [step for one in known if one is not None for step in one]
    found["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": spelt}
    return (json.dumps(found, indent=2, ensure_ascii=False) + "\n").encode()


def tokenizer_notes(path: Path) -> Iterator[str]:
    """What a user should know of it, where there is one."""
    if _splits_digits(list(_steps(_read(path)))):
        yield MISREAD if respelled(path) is None else RESPELLED


def _read(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except (OSError, Refused):
        return {}  # refused, or told, where it is read in earnest
    return found if isinstance(found, dict) and not any(TOKENIZER.misfits(found, "")) else {}


def _steps(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The steps of its pre-tokenizer, one after another, sequences within sequences taken apart."""
    waiting = [found.get("pre_tokenizer")]
    while waiting:
        step = waiting.pop(0)
        if not isinstance(step, dict):
            continue
        if step.get("type") == "Sequence":
            waiting[:0] = step.get("pretokenizers") or []
        else:
            yield step


def _splits_digits(steps: Steps) -> bool:
    return any(step.get("type") == "Digits" for step in steps)


def _spelt(step: dict[str, Any]) -> Steps | None:
    """The step in words that are read alike; None where none are known."""
    kind = step.get("type")
    if kind == "Digits" and step.get("individual_digits"):
        return [_split(r"\p{N}")]
    if kind == "ByteLevel" and not step.get("add_prefix_space", True):
        pattern = [_split(BYTE_LEVEL)] if step.get("use_regex", True) else []
        return [*pattern, {**step, "use_regex": False}]
    return [step] if kind == "Split" else None


def _split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False,
    }  # fmt: skip
