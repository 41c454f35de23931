"""The list of tokens, id by id, with the type that llama.cpp gives each."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gguf import TokenType

from qconvert.formats.gguf.tokenizer_files import AddedToken
from qconvert.formats.refusal import Reason

SAVE_AGAIN = "save the tokenizer again with the transformers or tokenizers version that made it"


@dataclass(slots=True)
class Findings:
    """What was found on the way: reasons to refuse, and differences worth a line."""

    reasons: list[Reason] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def refuse(self, problem: str, remedy: str = SAVE_AGAIN) -> None:
        self.reasons.append(Reason(problem, remedy))


@dataclass(frozen=True, slots=True)
class TokenTable:
    """texts[id] and kinds[id]; every id below `size` has exactly one text, no text two ids."""

    texts: tuple[str, ...]
    kinds: tuple[TokenType, ...]

    @property
    def size(self) -> int:
        return len(self.texts)


def token_table(
    vocabulary: Mapping[int, tuple[str, TokenType]],
    added: Sequence[AddedToken],
    vocab_size: int | None,
    findings: Findings,
) -> TokenTable:
    """Join the model's vocabulary and the added tokens; pad with unused tokens up to `vocab_size`.

    The embedding has `vocab_size` rows: a larger vocabulary is refused, and so are two tokens on
    one id, one text on two ids, and an id without a token below others (`tokenizers` would number
    the tokens anew).
    """
    tokens = dict(vocabulary)
    ids = {text: id for id, (text, _) in vocabulary.items()}
    for token in added:
        if token.id < 0:
            findings.refuse(f"token {token.text!r} has the id {token.id}")
            continue
        if ids.setdefault(token.text, token.id) != token.id:
            findings.refuse(f"token {token.text!r} has two ids: {ids[token.text]} and {token.id}")
        held = tokens.get(token.id, (token.text, TokenType.NORMAL))
        if held[0] != token.text:
            findings.refuse(f"id {token.id} belongs to two tokens: {held[0]!r} and {token.text!r}")
        tokens[token.id] = (token.text, _kind(token, held[1]))
    _check_holes(tokens, findings)
    size = max(tokens, default=-1) + 1
    if vocab_size is not None and size > vocab_size:
        findings.refuse(
            f"the tokenizer has {size} tokens, config.json says vocab_size {vocab_size}",
            "resize the model's embedding to the tokenizer, or use the model's own tokenizer",
        )
    rows = [tokens.get(id) or _padding(id, ids) for id in range(max(size, vocab_size or 0))]
    return TokenTable(tuple(text for text, _ in rows), tuple(kind for _, kind in rows))


def check_added(added: Sequence[AddedToken], normalized_text: Mapping[str, str], rstrip: bool,
                findings: Findings) -> None:  # fmt: skip
    """Refuse added tokens that llama.cpp would match elsewhere than `tokenizers` does.

    `normalized_text` maps the text of a token to what the normalizer makes of it, where it
    changes it; `rstrip` says that the runtime honours the flag for this vocabulary.
    """
    flags = ("lstrip", "single_word") if rstrip else ("lstrip", "rstrip", "single_word")
    for flag in flags:
        marked = [token.text for token in added if getattr(token, flag)]
        if marked:
            findings.refuse(
                f"added tokens with {flag}: {_some(marked)}; llama.cpp cannot express it",
                f"set {flag} to false in tokenizer.json where the difference is acceptable: white "
                "space or letters beside these tokens are then encoded as they stand",
            )
    changed = {text for text, after in normalized_text.items() if text != after}
    moved = [token.text for token in added if token.normalized and token.text in changed]
    if moved:
        findings.refuse(
            f"added tokens that the normalizer changes before they are matched: {_some(moved)}",
            "set normalized to false for them in tokenizer.json",
        )
    clashes = overlapping([token.text for token in added])
    if clashes:
        findings.notes.append(
            "added tokens that overlap in a text are cut differently by llama.cpp (longest first, "
            f"not leftmost first), as in {_some(clashes)}"
        )


def overlapping(texts: Sequence[str]) -> list[str]:
    """Texts that leftmost-longest and longest-first matching cut differently, one per pair."""
    starts: dict[str, list[str]] = defaultdict(list)
    for text in texts:
        for stop in range(1, len(text)):
            starts[text[:stop]].append(text)
    found = []
    for first in texts:
        for at in range(1, len(first)):
            for second in starts.get(first[at:], ()):
                joined = first[:at] + second
                if (
                    len(second) >= len(first)
                    and first != second
                    and not any(joined.startswith(longer) for longer in starts.get(first, ()))
                ):
                    found.append(joined)
    return found


def _kind(token: AddedToken, held: TokenType) -> TokenType:
    if held in (TokenType.UNKNOWN, TokenType.BYTE):
        return held
    text = token.text
    # Tokens of this shape are control tokens whatever the file says: llama.cpp's converter and
    # its loader treat them so, or user text could open a turn.
    shaped = text.startswith(("<|", "<\uff5c")) and text.endswith(("|>", "\uff5c>"))
    return TokenType.CONTROL if token.special or shaped else TokenType.USER_DEFINED


def _check_holes(tokens: Mapping[int, object], findings: Findings) -> None:
    holes = [id for id in range(max(tokens, default=-1) + 1) if id not in tokens]
    if holes:
        shown = ", ".join(str(id) for id in holes[:5]) + (" ..." if len(holes) > 5 else "")
        findings.refuse(f"the vocabulary has no token for {len(holes)} of its ids: {shown}")
    if min(tokens, default=0) < 0:
        findings.refuse("the vocabulary has negative ids")


def _padding(id: int, taken: Mapping[str, int]) -> tuple[str, TokenType]:
    text = f"[PAD{id}]"
    while text in taken:
        text = f"[{text}]"
    return text, TokenType.UNUSED


def _some(texts: Sequence[str]) -> str:
    return ", ".join(repr(text) for text in texts[:4]) + (" ..." if len(texts) > 4 else "")


def nfc_changes(added: Sequence[AddedToken]) -> dict[str, str]:
    """The texts of tokens that Unicode NFC changes."""
    pairs = ((token.text, unicodedata.normalize("NFC", token.text)) for token in added)
    return {text: after for text, after in pairs if text != after}
