"""A tokenizer that is spelt otherwise makes the same tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from qconvert.formats.onnx.tokenizer import MISREAD, RESPELLED, respelled, tokenizer_notes

TEXTS = ("a1b22 333", "x² ½ ①② ٣٤ Ⅷ 12 3", " 7  89\n10", "it's\t\t1  2", "no digits  ", "")


def saved(folder: Path, steps: list[Any]) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*TEXTS, *TEXTS, "12 12 333 ①② ①② ٣٤ ٣٤ ² ²"], trainer)
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def test_digits_are_split_as_before(tmp_path: Path) -> None:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    path = saved(tmp_path, [pre_tokenizers.Digits(individual_digits=True), byte_level])
    content = respelled(path)
    assert content is not None
    assert b'"Digits"' not in content
    before, after = Tokenizer.from_file(str(path)), Tokenizer.from_str(content.decode())
    for text in TEXTS:
        assert after.encode(text).tokens == before.encode(text).tokens
    other, known = json.loads(content), json.loads(path.read_text("utf-8"))
    del other["pre_tokenizer"], known["pre_tokenizer"]
    assert other == known
    assert list(tokenizer_notes(path)) == [RESPELLED]


@pytest.mark.parametrize(
    "steps",
    [
        [pre_tokenizers.Digits(individual_digits=False), pre_tokenizers.ByteLevel(False)],
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(True)],
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Punctuation()],
    ],
)
def test_what_cannot_be_spelt_is_left_and_said(tmp_path: Path, steps: list[Any]) -> None:
    path = saved(tmp_path, steps)
    assert respelled(path) is None
    assert list(tokenizer_notes(path)) == [MISREAD]


def test_others_are_left_as_they_are(tmp_path: Path) -> None:
    plain = saved(tmp_path, [pre_tokenizers.ByteLevel()])
    (tmp_path / "broken.json").write_text("{")
    for path in (plain, tmp_path / "broken.json", tmp_path / "none.json"):
        assert respelled(path) is None
        assert not list(tokenizer_notes(path))
