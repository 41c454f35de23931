"""Any change of a good file's bytes or fields: it is read, or refused in words."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from qconvert.formats.careful import parse_json
from qconvert.formats.gguf.header import decode_header
from qconvert.formats.gguf.reader import open_reader as open_gguf
from qconvert.formats.mlc.reader import open_reader as open_mlc
from qconvert.formats.onnx.reader import open_reader as open_onnx
from qconvert.formats.patterns import matches
from qconvert.formats.refusal import Refused
from qconvert.formats.safetensors_header import read_header
from qconvert.formats.serving.folder.reader import open_reader as open_served

FEW = settings(
    max_examples=60, deadline=None, database=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
)  # fmt: skip
INTEGERS = [0, 1, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "splice", "u32", "u64", "double"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=6,
)
"""What is done, where (as a part of the header), and with what."""


def edited(content: bytes, head: int, edits: list[tuple[str, float, int]]) -> bytes:
    """`content` with changes in its first `head` bytes."""
    data = bytearray(content)
    for what, where, value in edits:
        at = int(where * min(head, len(data)))
        extreme = INTEGERS[value % len(INTEGERS)]
        if what == "flip" and at < len(data):
            data[at] ^= value or 1
        elif what == "cut":
            del data[at : at + value]
        elif what == "splice":
            data[at:at] = data[value * 7 : value * 7 + 40]
        elif what == "double":
            data[at:at] = data[at : at + value]
        elif what == "u32":
            data[at : at + 4] = struct.pack("<I", extreme & 0xFFFFFFFF)
        elif what == "u64":
            data[at : at + 8] = struct.pack("<Q", extreme)
    return bytes(data)


def told(refused: Refused, word: str = "") -> None:
    assert str(refused).strip()
    assert word in str(refused)


def reads(open_reader: Callable[[Path], Any], path: Path) -> None:
    """All of an output is decoded, or something is refused."""
    try:
        reader = open_reader(path)
        for name in reader.tensors:
            reader.decode(name)
    except Refused as refused:
        told(refused)


@FEW
@given(edits=EDITS)
def test_gguf(edits: Any, good: Callable[[str], Path], tmp_path: Path) -> None:
    content = good("gguf").read_bytes()
    start = decode_header(memoryview(content)).data_start
    path = tmp_path / "x.gguf"
    path.write_bytes(edited(content, start, edits))
    reads(open_gguf, path)


@FEW
@given(edits=EDITS, part=st.sampled_from([200, 2000, 1 << 30]))
def test_safetensors(edits: Any, part: int, good: Callable[[str], Path], tmp_path: Path) -> None:
    content = (good("gptq") / "model.safetensors").read_bytes()
    size = 8 + int.from_bytes(content[:8], "little")
    path = tmp_path / "x.safetensors"
    path.write_bytes(edited(content, min(size, part), edits))
    try:
        read_header(path)
    except Refused as refused:
        told(refused, "x.safetensors")


@FEW
@given(edits=EDITS)
def test_onnx(edits: Any, good: Callable[[str], Path], tmp_path: Path) -> None:
    content = (good("onnx") / "model.onnx").read_bytes()
    folder = linked(good("onnx"), tmp_path, "model.onnx")
    (folder / "model.onnx").write_bytes(edited(content, len(content), edits))
    reads(open_onnx, folder)


@pytest.mark.parametrize(
    ("kind", "file", "open_reader"),
    [
        ("mlc", "tensor-cache.json", open_mlc),
        ("mlc", "mlc-chat-config.json", open_mlc),
        ("gptq", "config.json", open_served),
        ("ct", "config.json", open_served),
        ("onnx", "genai_config.json", open_onnx),
    ],
)
@FEW
@given(data=st.data())
def test_json(
    kind: str, file: str, open_reader: Any, data: Any, good: Callable[[str], Path], tmp_path: Path
) -> None:
    parsed = json.loads((good(kind) / file).read_text("utf-8"))
    folder = linked(good(kind), tmp_path, file)
    changed = replaced(parsed, data)
    (folder / file).write_text(json.dumps(changed), encoding="utf-8")
    reads(open_reader, folder)


ODD = st.recursive(
    st.none() | st.booleans() | st.sampled_from([-1, 0, 3, 2**31, 2**64, 10**400])
    | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner,
                                                                max_size=3),
    max_leaves=4,
)  # fmt: skip


def replaced(value: Any, data: Any) -> Any:
    """`value` with something odd somewhere inside."""
    if isinstance(value, dict) and value and data.draw(st.integers(0, 5)):
        key = data.draw(st.sampled_from(sorted(value)))
        return {**value, key: replaced(value[key], data)}
    if isinstance(value, list) and value and data.draw(st.integers(0, 5)):
        at = data.draw(st.integers(0, len(value) - 1))
        return [*value[:at], replaced(value[at], data), *value[at + 1 :]]
    return data.draw(ODD)


def linked(source: Path, tmp_path: Path, but: str) -> Path:
    """A folder of links to the files of `source`, without one."""
    folder = tmp_path / "folder"
    folder.mkdir(exist_ok=True)
    for file in source.iterdir():
        if file.name != but and not (folder / file.name).exists():
            (folder / file.name).symlink_to(file)
    (folder / but).unlink(missing_ok=True)
    return folder


@FEW
@given(
    keys=st.lists(
        st.tuples(st.binary(max_size=6), st.integers(0, 13), st.integers(0, 13),
                  st.sampled_from([0, 1, 2, 2**16, 2**32, 2**63]), st.binary(max_size=40)),
        max_size=4,
    ),
    infos=st.lists(
        st.tuples(st.binary(max_size=6), st.lists(st.sampled_from([0, 1, 32, 2**48, 2**63]),
                                                  max_size=5),
                  st.integers(0, 40), st.sampled_from([0, 32, 2**63])),
        max_size=3,
    ),
    extra=st.integers(0, 3),
)  # fmt: skip
def test_gguf_of_any_fields(keys: Any, infos: Any, extra: int) -> None:
    """Well-formed up to a point, so that every field is reached."""
    out = struct.pack("<4sIQQ", b"GGUF", 3, len(infos), len(keys) + extra)
    for name, kind, sub_kind, count, values in keys:
        out += struct.pack("<Q", len(name)) + name + struct.pack("<I", kind)
        out += struct.pack("<IQ", sub_kind, count) + values
    for name, sizes, kind, offset in infos:
        out += struct.pack("<Q", len(name)) + name + struct.pack("<I", len(sizes))
        out += struct.pack(f"<{len(sizes)}Q", *sizes) + struct.pack("<IQ", kind, offset)
    try:
        decode_header(memoryview(out + bytes(256)))
    except Refused as refused:
        told(refused)


ENTRY = st.fixed_dictionaries({
    "dtype": st.sampled_from(["F32", "BF16", "U8", "F4", "F99", "", None, []]),
    "shape": st.lists(st.sampled_from([0, 1, 2, 8, -1, 2**40, 2**64, 1.0, True, "1", None]),
                      max_size=4) | st.none(),
    "data_offsets": st.lists(st.sampled_from([0, 4, 8, 32, -4, 2**63, 10**300, 0.0, None]),
                             max_size=3),
})  # fmt: skip


@FEW
@given(header=st.dictionaries(st.text(max_size=5), ENTRY | st.none(), max_size=4), nbytes=st.sampled_from([0, 4, 8, 40]))  # fmt: skip # noqa: E501
def test_safetensors_of_any_fields(header: Any, nbytes: int, tmp_path: Path) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(nbytes))
    try:
        found = read_header(path)
    except Refused:
        return
    assert sum(entry.nbytes for entry in found.values()) == nbytes


@FEW
@given(text=st.text("()[]{}|*+?.^$\\:-,012ab", max_size=24))
def test_a_pattern_is_quick_or_refused(text: str) -> None:
    try:
        matches(text, "model.layers.0.self_attn.q_proj" + "a" * 40)
    except Refused as refused:
        told(refused, "pattern")


@FEW
@given(value=ODD)
def test_json_is_read_as_the_standard_library_does(value: Any) -> None:
    try:
        text = json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return
    assert repr(parse_json(text)) == repr(json.loads(text))
