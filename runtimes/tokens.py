"""Does the runtime cut text into the same tokens as the model's own tokenizer?"""

from __future__ import annotations

import json
import unicodedata

from tokenizers import Tokenizer

from qconvert.runtimes.findings import TokenMismatch, TokenParity
from qconvert.runtimes.parity import compare, parity_strings
from qconvert.runtimes.runtime import Session

EXAMPLES = 3


def check_tokens(tokenizer: Tokenizer, session: Session, misread: str = "") -> TokenParity:
    """Some 4,000 strings, with every special token of `tokenizer`, through both; without those that
    hold a character of `misread`."""
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    strings = [
        text
        for text in _comparable(tokenizer, parity_strings(special))
        if not any(character in text for character in misread)
    ]
    found = compare(
        lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        lambda text: session.tokenize(text, special=True),
        strings,
    )
    shortest = sorted(found, key=lambda one: len(one.text))[:EXAMPLES]
    examples = tuple(TokenMismatch(one.text, one.a, one.b) for one in shortest)
    return TokenParity(len(strings), len(found), examples)


def _comparable(tokenizer: Tokenizer, strings: list[str]) -> list[str]:
    """Without text that the tokenizer would compose first (NFC, as Qwen's does): runtimes take text
    as it comes, and what users type is composed already."""
    if '"type": "NFC"' not in json.dumps(json.loads(tokenizer.to_str()).get("normalizer")):
        return strings
    return [text for text in strings if unicodedata.is_normalized("NFC", text)]
