"""Byte-level BPE (GPT-2 and its heirs) of a tokenizer.json, as llama.cpp's "gpt2" model."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from gguf import TokenType
from tokenizers import Tokenizer
from tokenizers.models import BPE

from qconvert.formats.gguf.pretokenizers import (
    PRE_TOKENIZERS,
    PreTokenizer,
    UnknownStep,
    canonical_steps,
    matching,
)
from qconvert.formats.gguf.token_table import Findings

NFC_NOTE = (
    "the tokenizer normalizes text to Unicode NFC first and llama.cpp does not: text that is not "
    "in NFC (letters with separate accents) is encoded differently"
)
_PRINTED = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}  # stand for themselves
_OTHERS = [byte for byte in range(0x100) if byte not in _PRINTED]
_BYTES = {chr(byte): byte for byte in _PRINTED} | {
    chr(0x100 + at): byte for at, byte in enumerate(_OTHERS)
}
"""GPT-2's alphabet of bytes: character -> byte."""
_NEVER_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}


def is_byte_level(definition: Mapping[str, Any]) -> bool:
    """True when text is turned into bytes before the model sees it."""
    return '"ByteLevel"' in json.dumps(definition.get("pre_tokenizer"))


def byte_level_vocabulary(
    model: Mapping[str, Any], findings: Findings
) -> dict[int, tuple[str, TokenType]]:
    """id -> (text, type) of `model.vocab`; refuses model options that llama.cpp has not."""
    check_bpe_options(model, findings)
    vocabulary = {int(id): (text, TokenType.NORMAL) for text, id in model["vocab"].items()}
    if len(vocabulary) < len(model["vocab"]):
        findings.refuse("tokens in model.vocab of tokenizer.json share an id")
    needed = {char for char, byte in _BYTES.items() if byte not in _NEVER_IN_UTF8}
    missing = needed - model["vocab"].keys()
    if missing and model.get("unk_token"):
        findings.refuse(
            f"{len(missing)} bytes have no token and become {model['unk_token']!r}, which "
            "llama.cpp's byte-level BPE does not do",
            "a byte-level vocabulary with all 256 bytes",
        )
    return vocabulary


def check_bpe_options(model: Mapping[str, Any], findings: Findings) -> None:
    """Refuse options of a BPE model that change the encoding and that no GGUF can say."""
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            findings.refuse(
                f"tokenizer.json: model.{option} is {model[option]!r}, which llama.cpp has not",
                "a BPE tokenizer without it",
            )


def read_merges(model: Mapping[str, Any], findings: Findings) -> list[tuple[str, str]]:
    """The merges in order of rank, from either notation ("a b" or ["a", "b"])."""
    merges: dict[tuple[str, str], int] = {}
    vocabulary, bad = model["vocab"], []
    for rank, merge in enumerate(model.get("merges") or ()):
        pair = tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge)
        if len(pair) != 2 or not all(part in vocabulary for part in (*pair, "".join(pair))):
            bad.append(merge)
        else:
            merges[pair[0], pair[1]] = rank  # of two equal merges the later one counts
    if bad:
        findings.refuse(
            f"tokenizer.json: {len(bad)} merges do not join two tokens into a third, "
            f"the first is {bad[0]!r}"
        )
    return sorted(merges, key=lambda pair: merges[pair])


def pre_tokenizer(
    definition: Mapping[str, Any],
    merges: Sequence[tuple[str, str]],
    added: Collection[str],
    findings: Findings,
) -> str:
    """`tokenizer.ggml.pre` of this tokenizer; "" and a reason when llama.cpp has none for it."""
    quoted = json.dumps(definition.get("pre_tokenizer"), ensure_ascii=False)
    try:
        steps = canonical_steps(definition.get("pre_tokenizer"))
    except UnknownStep as unknown:
        findings.refuse(f"unknown pre-tokenizer: {unknown}, in {quoted}", _remedy())
        return ""
    rows = matching(steps)
    if not rows:
        findings.refuse(f"unknown pre-tokenizer: {quoted}", _remedy())
        return ""
    row = next((row for row in rows if serves(row, definition["model"], merges, added)), None)
    if row is None:
        findings.refuse(
            f"llama.cpp's pre-tokenizer {rows[0].name!r} cuts text as this one does, but not for "
            f"this vocabulary: {_hindrance(rows[0], definition['model'])}",
            "no setting of llama.cpp serves this tokenizer",
        )
        return ""
    if row.note:
        findings.notes.append(row.note)
    return row.name


def check_normalizer(definition: Mapping[str, Any], findings: Findings) -> bool:
    """True for Unicode NFC, False for none; refuses all others."""
    normalizer = definition.get("normalizer")
    parts = [normalizer] if normalizer else []
    if normalizer and normalizer.get("type") == "Sequence":
        parts = list(normalizer.get("normalizers", ()))
    kinds = {part.get("type") for part in parts}
    if kinds - {"NFC"}:
        findings.refuse(
            f"unknown normalizer: {json.dumps(normalizer, ensure_ascii=False)}",
            "llama.cpp's byte-level BPE takes text as it is: no normalizer, or NFC",
        )
    if "NFC" in kinds:
        findings.notes.append(NFC_NOTE)
    return "NFC" in kinds


def serves(
    row: PreTokenizer,
    model: Mapping[str, Any],
    merges: Sequence[tuple[str, str]],
    added: Collection[str],
) -> bool:
    """True when the differences between `row` and the tokenizer cannot matter to its tokens."""
    if row.apart and any(_joins(row.apart, left, right) for left, right in merges):
        return False
    wanted = bool(model.get("ignore_merges"))
    return row.ignore_merges == wanted or _merges_reach_every_token(model["vocab"], merges, added)


def _hindrance(row: PreTokenizer, model: Mapping[str, Any]) -> str:
    if row.apart:
        return f"it has merges that join {row.apart}"
    wanted = bool(model.get("ignore_merges"))
    return f"ignore_merges is {wanted}, llama.cpp does the contrary, and merges miss some tokens"


def _joins(what: str, left: str, right: str) -> bool:
    if what == "digit and other":
        return _numeric(left[-1]) != _numeric(right[0])
    text = bytes(_BYTES[character] for character in left + right if character in _BYTES)
    return sum(map(_numeric, text.decode("utf-8", "ignore"))) > 1


def _numeric(character: str) -> bool:
    return unicodedata.category(character).startswith("N")


def _merges_reach_every_token(
    vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], added: Collection[str]
) -> bool:
    """True when taking whole words from the vocabulary gives what the merges give anyway."""
    words = Tokenizer(BPE(vocab=dict(vocabulary), merges=list(merges)))
    texts = [text for text in vocabulary if text not in added and _BYTES.keys() >= set(text)]
    encoded = words.encode_batch(texts, add_special_tokens=False)
    return all(len(encoding.ids) == 1 for encoding in encoded)


def _remedy() -> str:
    names = ", ".join(dict.fromkeys(row.name for row in PRE_TOKENIZERS))
    return (
        "it must be one that llama.cpp has: known are the definitions of "
        f"{names}. Nothing is guessed, as a near match encodes some texts wrongly"
    )
