"""tokenizer.model: the few fields of SentencePiece's protobuf that a GGUF needs.

Field numbers: google/sentencepiece, src/sentencepiece_model.proto.
"""

from __future__ import annotations

import struct
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gguf import TokenType

from qconvert.formats.gguf.sentencepiece import SPACE, check_bytes
from qconvert.formats.gguf.token_table import Findings

_BPE = 2
_MODEL_NAMES = {1: "Unigram", 3: "word", 4: "character"}
_TAKE_JSON = (
    "put the tokenizer.json beside it that transformers makes "
    "(AutoTokenizer.from_pretrained(folder).save_pretrained(folder))"
)

Value = int | bytes
Fields = dict[int, list[Value]]


@dataclass(frozen=True, slots=True)
class PieceModel:
    """The pieces in order of id, and what is done to a text before."""

    texts: tuple[str, ...]
    kinds: tuple[TokenType, ...]
    scores: tuple[float, ...]
    space_prefix: bool
    special: dict[str, int]  # "bos", "eos", "unk", "pad" -> id, where the model has them


def read_piece_model(content: bytes, findings: Findings) -> PieceModel:
    """Read a tokenizer.model; refuses what llama.cpp's "llama" tokenizer does not do."""
    try:
        model = _fields(content)
        trainer = _fields(_bytes(model[2][-1])) if model[2] else _fields(b"")
        normalizer = _fields(_bytes(model[3][-1])) if model[3] else _fields(b"")
        pieces = [_piece(_fields(_bytes(piece))) for piece in model[1]]
    except (ValueError, IndexError, struct.error, AssertionError) as error:
        findings.refuse(f"tokenizer.model is not a SentencePiece model: {error}", _TAKE_JSON)
        return PieceModel((), (), (), True, {})
    _check(trainer, normalizer, findings)
    texts = [text for text, _, _ in pieces]
    prefix = bool(_last(normalizer, 3, 1))
    if prefix and any(kind == TokenType.USER_DEFINED for _, _, kind in pieces):
        findings.refuse(
            "tokenizer.model has user-defined pieces and puts a space before the text; llama.cpp "
            "would put one after each such piece as well",
            _TAKE_JSON,
        )
    check_bytes(texts, findings)
    _check_distinct(texts, findings)
    names = {"unk": (40, 0), "bos": (41, 1), "eos": (42, 2), "pad": (43, -1)}
    special = {name: _signed(_last(trainer, *field)) for name, field in names.items()}
    return PieceModel(
        tuple(texts),
        tuple(kind for _, _, kind in pieces),
        tuple(score for _, score, _ in pieces),
        prefix,
        {name: id for name, id in special.items() if 0 <= id < len(pieces)},
    )


def _check(trainer: Fields, normalizer: Fields, findings: Findings) -> None:
    kind = _last(trainer, 3, 1)
    if kind != _BPE:
        findings.refuse(
            f"tokenizer.model is a {_MODEL_NAMES.get(kind, kind)} model, only BPE is supported",
            "a model with a BPE tokenizer",
        )
    for problem, present in (
        ("has white space at the end of words", _last(trainer, 24, 0)),
        ("removes extra spaces", _last(normalizer, 4, 1)),
        ("keeps spaces as they are", not _last(normalizer, 5, 1)),
        ("normalizes its text by a table", any(normalizer[2])),
    ):
        if present:
            findings.refuse(f"tokenizer.model {problem}, which llama.cpp has not", _TAKE_JSON)


def _check_distinct(texts: Sequence[str], findings: Findings) -> None:
    twice = [text for text, count in Counter(texts).items() if count > 1]
    if twice:
        findings.refuse(f"tokenizer.model has pieces twice: {twice[:4]}", _TAKE_JSON)


def _piece(fields: Fields) -> tuple[str, float, TokenType]:
    text = _bytes(fields[1][-1]).decode("utf-8")
    score = struct.unpack("<f", _bytes(fields[2][-1]))[0] if fields[2] else 0.0
    kind = TokenType(_last(fields, 3, TokenType.NORMAL))
    # User-defined pieces are cut out of the raw text, where spaces are still spaces.
    return text.replace(SPACE, " ") if kind == TokenType.USER_DEFINED else text, score, kind


def _fields(content: bytes) -> Fields:
    """Field number -> values, in order; varints as int, everything else as bytes."""
    found: Fields = defaultdict(list)
    for number, value in _walk(content):
        found[number].append(value)
    return found


def _walk(content: bytes) -> Iterator[tuple[int, Value]]:
    at = 0
    while at < len(content):
        tag, at = _varint(content, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(content, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(content, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at + size > len(content):
            raise ValueError("the file ends within a field")
        yield number, content[at : at + size]
        at += size


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError(f"a number of more than 64 bits at byte {at}")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _last(fields: Fields, number: int, default: int) -> int:
    value = fields[number][-1] if fields[number] else default
    if not isinstance(value, int):
        raise ValueError(f"field {number} is not a number")
    return value


def _bytes(value: Value) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number where text should be")
    return value
