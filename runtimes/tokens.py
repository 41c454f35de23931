"""Does the runtime cut text into the same tokens as the model's own tokenizer?"""

from __future__ import annotations

from tokenizers import Tokenizer

from qconvert.runtimes.findings import TokenMismatch, TokenParity
from qconvert.runtimes.parity import compare, parity_strings
from qconvert.runtimes.runtime import Session

EXAMPLES = 3


def check_tokens(tokenizer: Tokenizer, session: Session) -> TokenParity:
    """Some 4,000 strings, with every special token of `tokenizer`, through both."""
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    strings = parity_strings(special)
    found = compare(
        lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        lambda text: session.tokenize(text, special=True),
        strings,
    )
    shortest = sorted(found, key=lambda one: len(one.text))[:EXAMPLES]
    examples = tuple(TokenMismatch(one.text, one.a, one.b) for one in shortest)
    return TokenParity(len(strings), len(found), examples)
