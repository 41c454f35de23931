"""Rows of tokens: which, in what order, and what is refused."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from qconvert.calibration import rows as module
from qconvert.calibration.rows import Wanted, calibration, digest
from qconvert.formats.refusal import Refused

CONFIG = {"vocab_size": 512, "max_position_embeddings": 512}
TEXT = "".join(f"Line {n} of a text, with n squared = {n * n}.\n" for n in range(3000))


@pytest.fixture
def folder(tiny_copy: Callable[..., Path]) -> Path:
    return tiny_copy()


def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def encode(folder: Path, text: str) -> list[int]:
    found: list[int] = tokenizer(folder).encode(text, add_special_tokens=False).ids
    return found


def settings(folder: Path, **changes: Any) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def text_file(tmp_path: Path, text: str = TEXT, name: str = "mine.txt") -> str:
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    return str(tmp_path / name)


def refusal(folder: Path, wanted: Wanted, config: dict[str, Any] = CONFIG) -> str:
    with pytest.raises(Refused) as refused:
        calibration(folder, config, wanted)
    assert all(reason.remedy for reason in refused.value.reasons)
    return str(refused.value)


def test_one_text_is_cut_into_its_first_tokens(folder: Path, tmp_path: Path) -> None:
    found = calibration(folder, CONFIG, Wanted(text_file(tmp_path), rows=7, length=64, seed=9))
    assert found.tokens.dtype == np.int32
    assert found.tokens.shape == (7, 64)
    assert found.tokens.ravel().tolist() == encode(folder, TEXT)[: 7 * 64]
    assert found.origin == "mine.txt"
    assert found.notes == ()
    assert found.digest == digest(found.tokens)


def test_only_what_is_needed_is_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the file is not UTF-8, and nobody asks; where it is needed, it is refused."""
    path = tmp_path / "long.txt"
    path.write_bytes(TEXT.encode() * 12 + b"\xff")
    monkeypatch.setattr(module, "READ", 1)
    wanted = Wanted(str(path), rows=2, length=64)
    assert calibration(folder, CONFIG, wanted).tokens.ravel().tolist() == encode(folder, TEXT)[:128]
    assert "not UTF-8" in refusal(folder, Wanted(str(path), rows=100_000, length=64))


def test_text_with_few_tokens_for_its_length(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first guess at how much to read is too little; the tokens are those of the whole."""
    monkeypatch.setattr(module, "READ", 1)
    text = ("indentation = 1\n" + "    " * 40) * 3000
    tokens = encode(folder, text)
    found = calibration(folder, CONFIG, Wanted(text_file(tmp_path, text), rows=20, length=64))
    assert found.tokens.ravel().tolist() == tokens[: 20 * 64]


def test_a_tokenizer_that_adds_bos(folder: Path, tmp_path: Path) -> None:
    settings(folder, add_bos_token=True)
    found = calibration(folder, CONFIG, Wanted(text_file(tmp_path), rows=3, length=64)).tokens
    assert found[:, 0].tolist() == [1, 1, 1]
    assert found[:, 1:].ravel().tolist() == encode(folder, TEXT)[: 3 * 63]


def test_documents_are_shuffled_by_seed_and_joined(folder: Path, tmp_path: Path) -> None:
    texts = [f"Document {n} says {n * 37}." for n in range(40)]
    lines = "\n".join(json.dumps({"text": text}) for text in texts)
    source = text_file(tmp_path, lines, "mine.jsonl")
    one, same, other = (
        calibration(folder, CONFIG, Wanted(source, rows=4, length=64, seed=seed))
        for seed in (0, 0, 1)
    )
    assert one.digest == same.digest != other.digest
    said = tokenizer(folder).decode(one.tokens.ravel().tolist())
    order = said.split("\n\n")[:-1]
    assert set(order) < set(texts)
    assert order != texts[: len(order)]


def test_every_document_is_used_once(folder: Path, tmp_path: Path) -> None:
    texts = [f"Document {n}." for n in range(40)]
    source = text_file(tmp_path, "\n".join(map(json.dumps, texts)), "a.jsonl")
    total = sum(len(encode(folder, text + "\n\n")) for text in texts)
    found = calibration(folder, CONFIG, Wanted(source, rows=1, length=total, seed=3))
    said = tokenizer(folder).decode(found.tokens.ravel().tolist()).split("\n\n")
    assert said.pop() == ""
    assert said != texts
    assert sorted(said) == sorted(texts)


def test_fewer_rows_than_wanted_is_a_note(folder: Path, tmp_path: Path) -> None:
    text = TEXT[:2000]
    count = len(encode(folder, text))
    found = calibration(folder, CONFIG, Wanted(text_file(tmp_path, text), rows=999, length=64))
    assert len(found.tokens) == count // 64
    assert f"{count // 64} rows of 64 instead of 999" in found.notes[0]
    assert f"{count:,} tokens" in found.notes[0]


def test_less_than_a_row(folder: Path, tmp_path: Path) -> None:
    text = "A short text of a few words.\n"
    count = len(encode(folder, text))
    said = refusal(folder, Wanted(text_file(tmp_path, text), length=64))
    assert f"it has {count} tokens" in said
    assert f"--calib-length {count}" in said
    found = calibration(folder, CONFIG, Wanted(text_file(tmp_path, text), rows=1, length=count))
    assert found.tokens.shape == (1, count)


def test_requests_that_make_no_sense_are_told_together(folder: Path) -> None:
    said = refusal(folder, Wanted(rows=0, length=2048, chat=True, source="self"))
    assert "--calib-rows 0" in said
    assert "beyond the model's 512 positions" in said
    assert "--calib-chat" in said
    assert "no context" in refusal(folder, Wanted(length=1))


def test_gpt2_says_positions_in_its_own_way(folder: Path) -> None:
    assert "64 positions" in refusal(folder, Wanted(length=65), {"n_positions": 64})


def test_a_token_outside_the_vocabulary(folder: Path) -> None:
    said = refusal(folder, Wanted(rows=2, length=64), {**CONFIG, "vocab_size": 100})
    assert "the model has 100" in said


def test_no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer.json" in refusal(folder, Wanted())


def test_self_without_a_sampler(folder: Path) -> None:
    assert "cannot be sampled" in refusal(folder, Wanted("self"))


def test_digest_knows_tokens_and_shape() -> None:
    tokens = np.arange(12, dtype=np.int32)
    assert (
        len({digest(tokens.reshape(3, 4)), digest(tokens.reshape(4, 3)), digest(tokens[::-1])}) == 3
    )
    said = b"3x4\n" + b"".join(bytes([n, 0, 0, 0]) for n in range(12))
    assert digest(tokens.reshape(3, 4)) == hashlib.sha256(said).hexdigest()


def test_the_default_mix_uses_all_kinds_evenly(folder: Path) -> None:
    found = calibration(folder, CONFIG, Wanted(rows=64, length=128))
    assert found.tokens.shape == (64, 128)
    assert found.origin == "default"
    [note] = found.notes
    counts = [int(number.replace(",", "")) for number in re.findall(r" ([\d,]+)(?:, |$)", note)]
    assert len(counts) == 6
    assert max(counts) < 4 * min(counts)


def test_a_chat_goes_through_the_template(folder: Path, tmp_path: Path) -> None:
    lines = "\n".join(json.dumps({"prompt": f"Why {n}?", "response": "So."}) for n in range(40))
    source = text_file(tmp_path, lines, "chats.jsonl")
    settings(folder, add_bos_token=True)  # the template says what stands in front, and says none
    found = calibration(folder, CONFIG, Wanted(source, rows=2, length=64, chat=True)).tokens
    said = tokenizer(folder).decode(found.ravel().tolist(), skip_special_tokens=False)
    first = said.split("<|im_end|>\n")[:2]
    assert first[0].startswith("<|im_start|>user\nWhy ")
    assert first[1] == "<|im_start|>assistant\nSo."
    assert 3 in found  # <|im_start|>, one token


def test_a_plain_text_as_chat(folder: Path, tmp_path: Path) -> None:
    source = text_file(tmp_path)
    found = calibration(folder, CONFIG, Wanted(source, rows=4, length=256, chat=True)).tokens
    said = tokenizer(folder).decode(found.ravel().tolist(), skip_special_tokens=False)
    assert said.startswith("<|im_start|>user\nContinue this text:\n\nLine 0 of")
    _, asked, answered = said.split("<|im_start|>")[:3]
    assert answered.startswith("assistant\nLine ")
    assert len(asked) < len(answered)


def test_chat_without_a_template(folder: Path) -> None:
    settings(folder, chat_template=None)
    assert "no chat template" in refusal(folder, Wanted(chat=True, length=64))


def test_a_template_that_takes_nothing(folder: Path) -> None:
    settings(folder, chat_template="{{ raise_exception('not today') }}")
    assert "not today" in refusal(folder, Wanted(chat=True, length=64))
