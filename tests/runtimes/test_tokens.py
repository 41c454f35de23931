"""Tokens of a runtime beside those of the model's tokenizer."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from qconvert.runtimes.tokens import check_tokens


def byte_level(normalizer: Any = None) -> Tokenizer:
    """One token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return tokenizer


class Session:
    """Takes text as it comes, and perhaps gets one token wrong."""

    def __init__(self, wrong: str = "") -> None:
        self.tokenizer, self.wrong = byte_level(), wrong

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids[:-1] if self.wrong and self.wrong in text else ids


def test_equal_tokens() -> None:
    found = check_tokens(byte_level(), Session())
    assert found.strings > 3000
    assert found.mismatches == 0


def test_a_difference_is_counted_and_shown() -> None:
    found = check_tokens(byte_level(), Session(wrong="z"))
    assert found.mismatches > 0
    assert "z" in found.examples[0].text


def test_text_that_is_not_composed_is_left_out_where_the_tokenizer_composes() -> None:
    composing = normalizers.Sequence([normalizers.NFC()])
    plain = check_tokens(byte_level(), Session())
    for normalizer in (normalizers.NFC(), composing):
        found = check_tokens(byte_level(normalizer), Session())
        assert found.mismatches == 0
        assert 2000 < found.strings < plain.strings


def test_what_a_runtime_is_known_to_misread_is_left_out() -> None:
    every = check_tokens(byte_level(), Session())
    found = check_tokens(byte_level(), Session(wrong="\x85"), "\x85")
    assert found.mismatches == 0
    assert every.strings - 200 < found.strings < every.strings
    assert check_tokens(byte_level(), Session(wrong="\x85")).mismatches > 0
