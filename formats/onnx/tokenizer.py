"""tokenizer.json in words that onnxruntime-genai reads as Hugging Face's tokenizers do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAME = "tokenizer.json"
NOTE = (
    "tokenizer.json splits digits by a regular expression, which gives the same tokens:"
    " onnxruntime-genai's rule for digits knows those of ASCII alone"
)


def respelled(path: Path) -> bytes | None:
    """The file with its `Digits` pre-tokenizers spelt as `Split`; None where it has none.

    `Digits` isolates the characters that Unicode calls numeric (Nd, Nl, No), each by itself or as
    runs: that is \\p{N} or \\p{N}+. Met with version 0.18.0: of "a²b" it makes other tokens.
    """
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # refused, or told, where it is read in earnest
    digits = list(_digits(found.get("pre_tokenizer") if isinstance(found, dict) else None))
    for one in digits:
        pattern = r"\p{N}" if one.get("individual_digits") else r"\p{N}+"
        one.clear()
        one |= {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
                "invert": False}  # fmt: skip
    return (json.dumps(found, indent=2, ensure_ascii=False) + "\n").encode() if digits else None


def _digits(step: Any) -> Iterator[dict[str, Any]]:
    """Every `Digits` of a pre-tokenizer, also within sequences."""
    if not isinstance(step, dict):
        return
    if step.get("type") == "Digits":
        yield step
    for inner in step.get("pretokenizers") or ():
        yield from _digits(inner)
