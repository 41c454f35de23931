from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest

from qconvert.formats.refusal import Refused
from qconvert.runtimes.text import Text, cut, encoder, prefix, read_text, read_tokenizer


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def test_the_package_brings_a_text_with_its_licence() -> None:
    data = files("qconvert.runtimes") / "data"
    text = read_text(None)
    assert 100_000 < len(text.content.encode()) <= 150_000
    assert text.content == (data / "wikitext-2-test.txt").read_text("utf-8")
    assert "Attribution-ShareAlike" in (data / "LICENSE.md").read_text("utf-8")


def test_windows_follow_one_another() -> None:
    found = cut(Text("t", "abcdefghij"), letters, count=3, length=3)
    assert found.tokens == (tuple(b"abc"), tuple(b"def"), tuple(b"ghi"))
    assert found.length == 3


def test_each_window_starts_with_the_prefix() -> None:
    found = cut(Text("t", "abcdefghij"), letters, count=3, length=4, prefix=(1,))
    assert found.tokens == ((1, *b"abc"), (1, *b"def"), (1, *b"ghi"))


def test_a_long_text_is_not_read_further_than_needed() -> None:
    seen = []

    def counting(text: str) -> list[int]:
        seen.append(len(text))
        return letters(text)

    cut(Text("t", "x" * 1_000_000), counting, count=2, length=10)
    assert seen == [320]


@pytest.mark.parametrize(("content", "advice"), [("abcdefgh", "--windows 2"), ("ab", "--length")])
def test_a_short_text_is_refused(content: str, advice: str) -> None:
    with pytest.raises(Refused, match=advice):
        cut(Text("short.txt", content), letters, count=3, length=3)


def test_text_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("é", encoding="utf-8")
    assert read_text(tmp_path / "a.txt").content == "é"
    (tmp_path / "b.txt").write_bytes(b"abc\xff")
    with pytest.raises(Refused, match="byte 3"):
        read_text(tmp_path / "b.txt")
    with pytest.raises(Refused, match=r"missing\.txt"):
        read_text(tmp_path / "missing.txt")


@pytest.mark.parametrize(
    ("adds", "template", "expected"),
    [(None, False, ()), (None, True, (1,)), (False, True, ()), (True, True, (1,)),
     (True, False, (1,))],
)  # fmt: skip
def test_bos_stands_in_front_where_the_tokenizer_puts_it(
    tiny_copy: Callable[..., Path], adds: bool | None, template: bool, expected: tuple[int, ...]
) -> None:
    from tokenizers.processors import TemplateProcessing

    folder = tiny_copy("llama")
    tokenizer = read_tokenizer(folder)
    assert tokenizer is not None
    if template:
        tokenizer.post_processor = TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text("utf-8")) | {"add_bos_token": adds}
    path.write_text(json.dumps(settings), encoding="utf-8")
    assert prefix(folder, tokenizer) == expected
    assert list(encoder(tokenizer)("<s>")) == [1]
    assert 1 not in encoder(tokenizer)("abc")


def test_a_broken_tokenizer_is_refused(tmp_path: Path) -> None:
    assert read_tokenizer(tmp_path) is None
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(Refused, match=r"tokenizer\.json"):
        read_tokenizer(tmp_path)
