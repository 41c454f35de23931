"""What can be read, and each fault of what cannot, by its place."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from qconvert.calibration import plaintext
from qconvert.calibration.documents import Document, Turn, read_documents
from qconvert.formats.refusal import MissingRuntime, Refused

MANY = 1 << 24
CHAT = (Turn("user", "Why?"), Turn("assistant", "Because."))


def write(path: Path, content: str | bytes | list[Any]) -> Path:
    if isinstance(content, list):
        content = "\n".join(json.dumps(one) for one in content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(path: Path) -> str:
    with pytest.raises(Refused) as refused:
        read_documents(path, MANY)
    assert all(reason.remedy for reason in refused.value.reasons)
    return str(refused.value)


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a"])
def test_any_other_suffix_is_one_text(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, "\ufeffone\r\ntwo\rthree\n")
    assert read_documents(file, MANY).all == (Document("one\ntwo\nthree\n"),)


def test_jsonl_columns(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
    parts = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Why?"}]},
        {"role": "assistant", "content": "Because."},
    ]
    spoken = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]
    records = [
        {"text": "plain", "id": 3},
        {"messages": turns},
        {"messages": parts},
        {"conversations": spoken},
        {"prompt": "Why?", "response": "Because."},
        {"prompt": "Why?", "completion": "Because."},
        "a string",
    ]
    chat = Document("", CHAT)
    found = read_documents(write(tmp_path / "a.jsonl", records), MANY).all
    assert found == (Document("plain"), chat, chat, chat, chat, chat, Document("a string"))


def test_json_is_a_list(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", json.dumps([{"text": "one"}, "two"]))
    assert read_documents(file, MANY).all == (Document("one"), Document("two"))
    assert "no list" in refusal(write(tmp_path / "b.json", '{"text": "one"}'))
    assert "not JSON" in refusal(write(tmp_path / "c.json", '{"text": "one"}\n{"text": "two"}'))


def test_a_folder_is_all_its_files_in_order(tmp_path: Path) -> None:
    write(tmp_path / "b.txt", "second")
    write(tmp_path / "a.jsonl", [{"text": "first"}])
    (tmp_path / "c").mkdir()
    write(tmp_path / "c" / "d.md", "third")
    write(tmp_path / ".hidden", "no")
    write(tmp_path / "picture.png", b"\x89PNG\0\0")
    found = read_documents(tmp_path, MANY)
    assert [one.text for one in found.all] == ["first", "second", "third"]
    assert found.notes == (f"1 files of {tmp_path.name} are not text: left out",)


def test_reading_stops_when_it_is_enough(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [{"text": "x" * 10}] * 9 + [{"nothing": 1}])
    found = read_documents(file, 25)
    assert len(found.all) == 3
    assert not found.complete
    assert "first 3 documents" in found.notes[0]


def test_a_long_text_is_read_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plaintext, "CHUNK", 7)  # cuts characters and line ends
    text = "añ水🙂\r\n" * 50
    file = write(tmp_path / "a.txt", text)
    assert read_documents(file, MANY).all[0].text == "añ水🙂\n" * 50
    part = read_documents(file, 20)
    assert 20 <= len(part.all[0].text) < 60
    assert not part.complete


def test_missing_and_empty(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "none.txt")
    assert "is empty" in refusal(write(tmp_path / "a.txt", ""))
    assert "is empty" in refusal(write(tmp_path / "b.txt", " \n\n"))
    assert "is empty" in refusal(write(tmp_path / "c.jsonl", "\n\n"))
    (tmp_path / "folder").mkdir()
    assert "no file to calibrate on" in refusal(tmp_path / "folder")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="every file is readable here")
def test_unreadable(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", "text")
    file.chmod(0)
    assert "cannot read" in refusal(file)


def test_a_folder_that_fails_while_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").mkdir()  # a folder by a file's name is a folder
    write(tmp_path / "a.jsonl" / "b.txt", "text")
    assert read_documents(tmp_path / "a.jsonl", MANY).all == (Document("text"),)


@pytest.mark.parametrize("chunk", [1 << 20, 3])
def test_wrong_encoding_names_byte_and_line(
    tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plaintext, "CHUNK", chunk)
    said = refusal(write(tmp_path / "a.txt", "水 one\ntwo\nd".encode() + b"\xe9j\xe0 vu\n"))
    assert "byte 13 is 0xe9 (line 3)" in said
    assert "iconv" in said
    assert "byte 15 is 0xe9 (line 2)" in refusal(
        write(tmp_path / "b.jsonl", b'{"text":"one"}\n\xe9{"text": "x"}')
    )


def test_a_cut_character_at_the_end(tmp_path: Path) -> None:
    assert "byte 4 is 0xe6 (line 1)" in refusal(write(tmp_path / "a.txt", b"one \xe6\xb0"))


def test_wide_and_binary_files(tmp_path: Path) -> None:
    assert "is UTF-16" in refusal(write(tmp_path / "a.txt", "hello".encode("utf-16")))
    assert "byte 4 is zero (line 2)" in refusal(write(tmp_path / "b.txt", b"one\n\0\1\2"))


def test_jsonl_faults_name_the_line(tmp_path: Path) -> None:
    good = '{"text": "one"}\n\n'
    assert "a.jsonl, line 3 is not JSON" in refusal(write(tmp_path / "a.jsonl", good + '{"text":'))
    said = refusal(write(tmp_path / "b.jsonl", good + '{"body": "x", "id": 1}'))
    assert "line 3 has no column" in said
    assert "body, id" in said
    assert "line 1 is no object" in refusal(write(tmp_path / "c.jsonl", "17"))
    assert "no object" in refusal(write(tmp_path / "d.jsonl", [{"messages": ["hello"]}]))
    assert "without role" in refusal(
        write(tmp_path / "e.jsonl", [{"messages": [{"content": "x"}]}])
    )


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "pyarrow.parquet", raising=False)
    with pytest.raises(MissingRuntime, match=r"pip install 'qconvert\[parquet\]'"):
        read_documents(write(tmp_path / "a.parquet", b"PAR1"), MANY)


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="needs pyarrow")
def test_parquet(tmp_path: Path) -> None:
    arrow: Any = importlib.import_module("pyarrow")
    parquet: Any = importlib.import_module("pyarrow.parquet")
    parquet.write_table(arrow.table({"text": ["one", "two"]}), tmp_path / "a.parquet")
    assert read_documents(tmp_path / "a.parquet", MANY).all == (Document("one"), Document("two"))
    talk = [[{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]]
    parquet.write_table(arrow.table({"messages": talk}), tmp_path / "b.parquet")
    assert read_documents(tmp_path / "b.parquet", MANY).all == (Document("", CHAT),)
    assert "cannot read" in refusal(write(tmp_path / "c.parquet", b"PAR1 not really"))
