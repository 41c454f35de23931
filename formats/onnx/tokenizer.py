"""What onnxruntime-genai reads of tokenizer.json otherwise than Hugging Face's tokenizers do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAME = "tokenizer.json"
DIGITS = (
    "onnxruntime-genai splits off ASCII digits alone: text with others, such as ² ½ ① ٣, gets other"
    " tokens there than from the model's tokenizer"
)


def tokenizer_notes(path: Path) -> Iterator[str]:
    """Of a tokenizer.json, where there is one. Met with version 0.18.0."""
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # refused, or told, where it is read in earnest
    if splits_digits(found.get("pre_tokenizer") if isinstance(found, dict) else None):
        yield DIGITS


def splits_digits(step: Any) -> bool:
    """Whether a pre-tokenizer of tokenizer.json has the step `Digits`, also within sequences."""
    if not isinstance(step, dict):
        return False
    return step.get("type") == "Digits" or any(
        splits_digits(inner) for inner in step.get("pretokenizers") or ()
    )
