"""SentencePiece BPE, from tokenizer.json (with byte fallback) or tokenizer.model, as "llama".

llama.cpp joins the neighbours whose joined text has the best score, the leftmost first;
`tokenizers` joins the pair of the best rank. The two agree when the merges are all the ways in
which tokens make tokens, and the ranks of one text lie together: that is checked, not hoped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from gguf import TokenType

from qconvert.formats.gguf.bytelevel import check_bpe_options
from qconvert.formats.gguf.token_table import Findings

SPACE = "▁"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_PREPEND = {"type": "Prepend", "prepend": SPACE}
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_FIRST_NOTE = (
    "this tokenizer puts a space before the first word of a text alone (Metaspace, "
    "prepend_scheme 'first'); llama.cpp puts one after every special token as well"
)
_LEADING_NOTE = (
    "this tokenizer puts no second space before a text that starts with one (Metaspace); "
    "llama.cpp does"
)


def piece_vocabulary(
    model: Mapping[str, Any], findings: Findings
) -> dict[int, tuple[str, TokenType]]:
    """id -> (text, type) of a byte-fallback BPE model in tokenizer.json."""
    check_bpe_options(model, findings)
    if model.get("ignore_merges"):
        findings.refuse(
            "tokenizer.json: model.ignore_merges with byte fallback, which llama.cpp has not",
            "a tokenizer whose merges reach every token, with ignore_merges false",
        )
    unknown = model.get("unk_token")
    vocabulary = {
        int(id): (text, _piece_kind(text, unknown)) for text, id in model["vocab"].items()
    }
    if len(vocabulary) < len(model["vocab"]):
        findings.refuse("tokens in model.vocab of tokenizer.json share an id")
    check_bytes([text for text, _ in vocabulary.values()], findings)
    return vocabulary


def check_bytes(texts: Collection[str], findings: Findings) -> None:
    """Refuse a vocabulary that cannot spell every byte: llama.cpp would abort on such text."""
    missing = {f"<0x{byte:02X}>" for byte in range(256)} - set(texts)
    if missing:
        findings.refuse(
            f"{len(missing)} of the 256 byte tokens are missing, the first is {min(missing)}",
            "a SentencePiece tokenizer with byte fallback",
        )


def space_prefix(definition: Mapping[str, Any], findings: Findings) -> bool:
    """Whether a space is put before the text; refuses what llama.cpp cannot do."""
    normalizer, pre = definition.get("normalizer") or {}, definition.get("pre_tokenizer")
    parts = normalizer.get("normalizers", [normalizer] if normalizer else [])
    if parts == [_PREPEND, _REPLACE] and pre is None:
        return True
    if parts == [_REPLACE] and (pre is None or _splits_nothing(pre)):
        return False
    if not parts and pre and pre.get("type") == "Metaspace" and pre.get("replacement") == SPACE:
        return _metaspace(pre, findings)
    quoted = json.dumps({"normalizer": normalizer, "pre_tokenizer": pre}, ensure_ascii=False)
    findings.refuse(
        f"unknown pre-tokenizer: {quoted}",
        "with byte fallback llama.cpp knows: spaces become ▁, one may be put before the text, "
        "and nothing else is done to it (normalizer Prepend and Replace, or Metaspace)",
    )
    return False


def scores_of_merges(
    merges: Sequence[tuple[str, str]],
    texts: Sequence[str],
    cut_first: Collection[str],
    findings: Findings,
) -> list[float]:
    """A score per token so that llama.cpp's order of joining is that of the merges.

    `cut_first` are tokens that are cut out of a text before anything is joined. Refuses merges
    whose order no score can express.
    """
    spans: dict[str, tuple[int, int]] = {}
    for rank, (left, right) in enumerate(merges):
        joined = left + right
        spans[joined] = (spans.get(joined, (rank, rank))[0], rank)
    _check_complete(set(merges), [text for text in texts if text not in cut_first], findings)
    order = {text: number for number, text in _groups(spans, cut_first, findings)}
    last = -float(len(merges))
    return [-float(order[text]) if text in order else last for text in texts]


def _groups(
    spans: Mapping[str, tuple[int, int]], cut_first: Collection[str], findings: Findings
) -> list[tuple[int, str]]:
    """(number, text): texts whose ranks interleave share a number, which only runs may do."""
    numbered: list[tuple[int, str]] = []
    mixed, end, number = [], -1, -1
    ordered = sorted((span, text) for text, span in spans.items() if text not in cut_first)
    for (first, last), text in ordered:
        if first > end:
            number += 1
        elif len(set(text) | set(numbered[-1][1])) > 1:
            mixed.append(text)
        end = max(end, last)
        numbered.append((number, text))
    if mixed:
        findings.refuse(
            f"the merges of {len(mixed)} tokens interleave with those of others, as {mixed[0]!r}: "
            "llama.cpp keeps one score per token and cannot follow",
            "a tokenizer.json made from the SentencePiece model (tokenizer.model)",
        )
    return numbered


def _check_complete(
    merges: Collection[tuple[str, str]], texts: Sequence[str], findings: Findings
) -> None:
    """Every way in which two symbols make a token must be a merge: llama.cpp takes them all."""
    known = set(texts)
    missing = [
        (text[:at], text[at:])
        for text in texts
        if len(text) > 1 and not _BYTE.fullmatch(text)
        for at in range(1, len(text))
        if (at == 1 or text[:at] in known)
        and (at == len(text) - 1 or text[at:] in known)
        and (text[:at], text[at:]) not in merges
    ]
    if missing:
        findings.refuse(
            f"{len(missing)} pairs of tokens make a token but are no merge in tokenizer.json, as "
            f"{missing[0]}: llama.cpp would join them",
            "a tokenizer.json made from the SentencePiece model (tokenizer.model)",
        )


def _piece_kind(text: str, unknown: str | None) -> TokenType:
    if text == unknown:
        return TokenType.UNKNOWN
    return TokenType.BYTE if _BYTE.fullmatch(text) else TokenType.NORMAL


def _splits_nothing(pre: Mapping[str, Any]) -> bool:
    """Gemma splits at spaces after the normalizer has turned every space into ▁."""
    return pre.get("type") == "Split" and pre.get("pattern") == {"String": " "}


def _metaspace(pre: Mapping[str, Any], findings: Findings) -> bool:
    if pre.get("split", True):
        findings.refuse(
            f"unknown pre-tokenizer: {json.dumps(pre, ensure_ascii=False)} splits at spaces",
            "llama.cpp joins across spaces: Metaspace with split false",
        )
    scheme = pre.get("prepend_scheme", "always" if pre.get("add_prefix_space", True) else "never")
    if scheme == "never":
        return False
    findings.notes.append(_LEADING_NOTE)
    if scheme == "first":
        findings.notes.append(_FIRST_NOTE)
    return True
