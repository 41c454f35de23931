"""Reading back: the checkpoint's own values, and damaged files refused at once."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from qconvert.checkpoint import open_checkpoint
from qconvert.formats.gguf.target import TARGET
from qconvert.formats.refusal import Refused
from qconvert.formats.target import Request

FAMILIES = {
    "llama": {"tie_word_embeddings": True, "attention_bias": True},
    "mistral": {}, "qwen2": {}, "qwen3": {}, "gemma3_text": {}, "phi3": {}, "gpt2": {},
    "gpt_neox": {"tie_word_embeddings": True},
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_those_of_the_checkpoint(
    family: str, tiny_model: Callable[..., Path], convert: Callable[..., Path]
) -> None:
    folder = tiny_model(family, **FAMILIES[family])
    weights = TARGET.reader(convert(folder, "F32")).weights(open_checkpoint(folder))
    stored = load_file(folder / "model.safetensors")
    assert set(weights) == set(stored)
    for name, values in stored.items():
        # w + 1 - 1 rounds: Gemma's norms come back to within 1e-7.
        assert np.allclose(weights[name], values, rtol=0, atol=1.2e-7), name
        assert weights[name].shape == values.shape


def test_quantized_weights_are_near_and_in_the_same_order(
    tiny_model: Callable[..., Path], convert: Callable[..., Path]
) -> None:
    folder = tiny_model("llama")
    weights = TARGET.reader(convert(folder, "Q8_0")).weights(open_checkpoint(folder))
    for name, values in load_file(folder / "model.safetensors").items():
        assert np.abs(weights[name] - values).max() < 0.01 * np.abs(values).max(), name


def test_weights_of_another_model_are_refused(
    tiny_model: Callable[..., Path], convert: Callable[..., Path]
) -> None:
    reader = TARGET.reader(convert(tiny_model("llama"), "F16"))
    with pytest.raises(Refused, match=r"blk\.0\.attn_q_norm\.weight"):
        reader.weights(open_checkpoint(tiny_model("qwen3")))


@pytest.fixture
def small(fake_source: Any, write: Callable[..., Path], tmp_path: Path) -> Path:
    source = fake_source("llama", hidden_size=64, head_dim=16, intermediate_size=64)
    return write(TARGET.plan(source, Request(type="Q8_0")), source, tmp_path / "small.gguf")


def test_a_file_cut_anywhere_is_refused(small: Path) -> None:
    whole = small.read_bytes()
    for size in [*range(0, 400, 7), *range(400, len(whole), len(whole) // 60), len(whole) - 1]:
        small.write_bytes(whole[:size])
        with pytest.raises(Refused, match=r"small\.gguf cannot be read as GGUF"):
            TARGET.reader(small)


def test_damaged_headers_never_end_in_a_traceback(small: Path) -> None:
    whole = small.read_bytes()
    header = 6000  # bytes: all keys, and most of the tensor infos
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        for at in random.integers(0, header, random.integers(1, 4)):
            damaged[at] = random.integers(0, 256)
        small.write_bytes(damaged)
        try:
            TARGET.reader(small)
        except Refused:
            refused += 1
    assert refused > 50


def _start(tensors: int, keys: int, rest: bytes = b"") -> bytes:
    return struct.pack("<IIQQ", 0x46554747, 3, tensors, keys) + rest + bytes(64)


def _text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


HOSTILE = {
    "do not fit in the file": _start(2**60, 0),
    "and 4611686018427387904 keys do not fit": _start(0, 2**62),
    "past the end": _start(0, 1, struct.pack("<Q", 2**63)),
    "claims": _start(0, 1, _text(b"k") + struct.pack("<IIQ", 9, 8, 2**50)),
    "reaches past the end": _start(0, 1, _text(b"k") + struct.pack("<IIQ", 9, 6, 2**60)),
    "arrays in an array": _start(0, 1, _text(b"k") + struct.pack("<IIQ", 9, 9, 1)),
    "unknown kind": _start(0, 1, _text(b"k") + struct.pack("<I", 99)),
    "is there twice": _start(0, 2, 2 * (_text(b"k") + struct.pack("<IB", 0, 1))),
    "has 4000000000 dimensions": _start(1, 0, _text(b"t") + struct.pack("<I", 4_000_000_000)),
    "'t' reaches past": _start(1, 0, _text(b"t") + struct.pack("<IQQIQ", 2, 2**40, 2**40, 0, 0)),
    "'t' is of an unknown type": _start(1, 0, _text(b"t") + struct.pack("<IQIQ", 1, 1, 77, 0)),
    "are not whole blocks": _start(1, 0, _text(b"t") + struct.pack("<IQIQ", 1, 33, 8, 0)),
    "is not aligned": _start(1, 0, _text(b"t") + struct.pack("<IQIQ", 1, 1, 0, 5)),
    "overlaps": _start(
        2, 0, b"".join(_text(n) + struct.pack("<IQIQ", 1, 9, 0, 0) for n in (b"a", b"b"))
    ),
    "general.alignment is 0": _start(0, 1, _text(b"general.alignment") + struct.pack("<II", 4, 0)),
    "version 2 is not known": struct.pack("<IIQQ", 0x46554747, 2, 0, 0),
    "does not begin": b"PK" + bytes(60),
}


@pytest.mark.parametrize("said", HOSTILE)
def test_hostile_headers_are_refused(said: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(HOSTILE[said])
    with pytest.raises(Refused, match=said):
        TARGET.reader(path)


def test_no_file_and_no_gguf_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no such file"):
        TARGET.reader(tmp_path / "absent.gguf")
    (tmp_path / "text").write_text("hello", encoding="utf-8")
    assert not TARGET.recognises(tmp_path / "text")
    assert not TARGET.recognises(tmp_path / "absent.gguf")
    assert not TARGET.recognises(tmp_path)


def test_a_type_that_is_not_ours_is_refused_by_name(tmp_path: Path) -> None:
    info = _text(b"t") + struct.pack("<IQIQ", 1, 256, 16, 0)  # IQ2_XXS
    path = tmp_path / "iq2.gguf"
    path.write_bytes(_start(1, 0, info) + bytes(128))
    with pytest.raises(Refused, match="t is stored as IQ2_XXS"):
        TARGET.reader(path).decode("t")
