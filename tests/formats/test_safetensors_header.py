"""Headers that lie are found out before a weight is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qconvert.formats.refusal import Refused
from qconvert.formats.safetensors_header import read_header

GOOD: dict[str, Any] = {
    "__metadata__": {"format": "pt"},
    "b": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]},
    "a": {"dtype": "F32", "shape": [2], "data_offsets": [12, 20]},
    "scalar": {"dtype": "F32", "shape": [], "data_offsets": [20, 24]},
    "empty": {"dtype": "F32", "shape": [0], "data_offsets": [24, 24]},
}


def write(path: Path, header: object, nbytes: int = 24) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(nbytes))
    return path


def changed(name: str, **fields: object) -> dict[str, Any]:
    return {**GOOD, name: {**GOOD[name], **fields}}


def test_a_good_header(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", GOOD)
    base = path.stat().st_size - 24
    found = read_header(path)
    assert set(found) == {"a", "b", "scalar", "empty"}
    assert (found["a"].offset, found["a"].nbytes) == (base + 12, 8)
    assert found["b"].shape == (2, 3)


def test_the_library_writes_what_we_read(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    arrays: dict[str, np.ndarray[Any, Any]] = {
        "x": np.arange(6, dtype=np.float32).reshape(2, 3),
        "y": np.ones(5, np.float16),
    }
    save_file(arrays, tmp_path / "x.safetensors", {"format": "pt"})
    content = (tmp_path / "x.safetensors").read_bytes()
    for name, entry in read_header(tmp_path / "x.safetensors").items():
        data = content[entry.offset : entry.offset + entry.nbytes]
        assert data == arrays[name].tobytes()


@pytest.mark.parametrize(
    ("header", "nbytes", "words"),
    [
        (GOOD, 23, "truncated: 1 of"),
        (GOOD, 25, "1 bytes at its end"),
        (b"{", 0, "not JSON"),
        (b"\xff\xfe", 0, "not JSON"),
        (b"[" * 100_000, 0, "not JSON"),
        (b'{"a": {}, "a": {}}', 0, "occurs twice"),
        ([], 0, "not a JSON object"),
        ({"a": 1}, 0, "entry of a is not an object"),
        (changed("a", dtype="F33"), 24, "unknown dtype 'F33'"),
        (changed("a", dtype=None), 24, "unknown dtype None"),
        (changed("a", dtype=[]), 24, "unknown dtype"),
        (changed("a", shape=[-2]), 24, "has the shape [-2]"),
        (changed("a", shape=[2.0]), 24, "has the shape"),
        (changed("a", shape=2), 24, "has the shape 2"),
        (changed("a", shape=[3]), 24, "cannot take 8 bytes"),
        (changed("a", shape=[2**40, 4]), 24, "cannot take 8 bytes"),
        (changed("a", shape=[2**62, 4]), 24, "has the shape"),
        (changed("a", data_offsets=[12]), 24, "offsets"),
        (changed("a", data_offsets=[20, 12]), 24, "cannot take -8 bytes"),
        (changed("a", data_offsets=[4, 12]), 24, "overlaps"),
        (changed("a", data_offsets=[112, 120]), 24, "leaves a gap"),
    ],
    ids=str,
)
def test_a_bad_header(header: object, nbytes: int, words: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", header, nbytes)
    with pytest.raises(Refused) as caught:
        read_header(path)
    assert words in str(caught.value)
    assert "x.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "truncated"),
        (b"1234567", "truncated"),
        ((100).to_bytes(8, "little") + b"{}", "the header needs 108 bytes"),
        (b"PK\x03\x04aaaaaaaaaaaaaaaa", "not a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not a safetensors file"),
    ],
)
def test_not_even_a_header(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(Refused) as caught:
        read_header(path)
    assert words in str(caught.value)


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 400), value=st.integers(0, 255))
def test_any_changed_byte_is_read_or_refused(
    at: int, value: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write(tmp_path_factory.getbasetemp() / "fuzz.safetensors", GOOD)
    content = bytearray(path.read_bytes())
    content[at % len(content)] = value
    path.write_bytes(content)
    try:
        found = read_header(path)
    except Refused:
        return
    assert all(entry.offset + entry.nbytes <= len(content) for entry in found.values())
