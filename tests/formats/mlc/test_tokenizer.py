"""What MLC is told of a tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from qconvert.formats.mlc.target import TARGET
from qconvert.formats.mlc.tokenizer import Tokenizer, read_tokenizer
from qconvert.formats.refusal import Refused

from .conftest import Model, request, write

STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
PREPEND = {"type": "Prepend", "prepend": "\u2581"}


def read(source: Model, **definition: Any) -> Tokenizer:
    whole = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}}, "added_tokens": [], **definition}
    (source.folder / "tokenizer.json").write_text(json.dumps(whole))
    return read_tokenizer(source)


def test_info_is_what_mlc_detects(model: Callable[..., Model]) -> None:
    source = model()
    assert read(source, decoder={"type": "ByteLevel"}).info == {
        "token_postproc_method": "byte_level", "prepend_space_in_encode": False,
        "strip_space_in_decode": False,
    }  # fmt: skip
    fallback = {"type": "Sequence", "decoders": [{"type": "Replace"}, {"type": "ByteFallback"},
                                                 {"type": "Fuse"}, STRIP]}  # fmt: skip
    normal = {"type": "Sequence", "normalizers": [PREPEND, {"type": "Replace"}]}
    assert read(source, decoder=fallback, normalizer=normal).info == {
        "token_postproc_method": "byte_fallback", "prepend_space_in_encode": True,
        "strip_space_in_decode": True,
    }  # fmt: skip
    assert read(source).info["token_postproc_method"] == "byte_fallback"


def test_active_vocabulary_counts_added_tokens(model: Callable[..., Model]) -> None:
    assert read(model(), added_tokens=[{"id": 4, "content": "<x>"}]).size == 5
    unigram = {"type": "Unigram", "vocab": [["a", -1.0], ["b", -2.0], ["c", -3.0]]}
    assert read(model(), model=unigram).size == 3


def test_what_mlc_fails_on_is_refused(model: Callable[..., Model]) -> None:
    twice = [{"id": 2, "content": "<x>"}, {"id": 3, "content": "<x>"}]
    with pytest.raises(Refused, match=r"<x> more than once"):
        read(model(), added_tokens=twice)
    with pytest.raises(Refused, match=r"has 51 tokens, the embedding 50 rows"):
        read(model(), added_tokens=[{"id": 50, "content": "<x>"}])


def test_files_are_copied_and_listed(model: Callable[..., Model], tmp_path: Any) -> None:
    source = model()
    (source.folder / "merges.txt").write_text("a b")
    (source.folder / "secret.txt").write_text("no")
    read(source)
    folder = write(source, TARGET.plan(source, request()), tmp_path / "out")
    config = json.loads((folder / "mlc-chat-config.json").read_text())
    assert config["tokenizer_files"] == ["tokenizer.json", "merges.txt"]
    assert (folder / "merges.txt").read_text() == "a b"
    assert not (folder / "secret.txt").exists()


def test_a_model_without_tokenizer_json_is_told(model: Callable[..., Model]) -> None:
    assert "no tokenizer.json" in read_tokenizer(model()).notes[0]
