"""Fixtures of the GGUF tests: convert a folder, and a source that needs no folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf.constants import GGUFValueType
from numpy.typing import NDArray

from qconvert.checkpoint import open_checkpoint
from qconvert.formats.gguf.target import TARGET
from qconvert.formats.gguf.vocab import Entry, Vocabulary
from qconvert.formats.source import Source, SourceTensor
from qconvert.formats.target import Plan, Request
from qconvert.models import FAMILIES


def write(plan: Plan, source: Source, path: Path) -> Path:
    """The smallest loop that a writer needs."""
    with TARGET.writer(plan, path) as sink:
        for tensor in plan.tensors:
            if tensor.source is None:
                assert tensor.values is not None
                sink.write(tensor, tensor.values)
                continue
            rows = source.rows(tensor.source, 0, 1 if len(tensor.shape) == 1 else tensor.shape[0])
            sink.write(tensor, rows if tensor.grid is None else tensor.grid.quantize(rows))
    return path


@pytest.fixture(name="write")
def write_fixture() -> Callable[[Plan, Source, Path], Path]:
    return write


@pytest.fixture
def convert(tmp_path: Path) -> Callable[..., Path]:
    """`convert(folder, type, **request) -> Path` of the file, or of its first part."""

    def run(folder: Path, type: str = "F32", **request: Any) -> Path:
        source = open_checkpoint(folder)
        plan = TARGET.plan(source, Request(type=type, **request))
        path = tmp_path / f"{type}.gguf"
        write(plan, source, path)
        return TARGET.outputs(plan, path)[0]

    return run


@dataclass(frozen=True)
class FakeSource:
    """A checkpoint that is only a configuration; its weights are all the same small number."""

    model_type: str
    config: Mapping[str, Any]
    tied: bool
    folder: Path = Path("nowhere")
    dtype: Any = "BF16"
    tensors: tuple[SourceTensor, ...] = field(init=False)

    def __post_init__(self) -> None:
        expected = FAMILIES[self.model_type].expected(self.config, head=not self.tied)
        tensors = tuple(
            SourceTensor(e.full_name, e.role, e.part, e.block, e.shape, self.dtype, e.transposed)
            for e in expected
        )
        object.__setattr__(self, "tensors", tensors)

    def rows(self, tensor: SourceTensor, start: int, stop: int) -> NDArray[np.float32]:
        one = len(tensor.shape) == 1
        shape = tensor.shape if one else (stop - start, *tensor.shape[1:])
        return np.full(shape, 0.125, dtype=np.float32)


@pytest.fixture
def fake_source(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeSource]:
    """`fake_source(model_type, **config)`: with a vocabulary of `vocab_size` meaningless tokens."""
    monkeypatch.setattr("qconvert.formats.gguf.target.read_vocabulary", _meaningless)

    def build(model_type: str, *, dtype: str = "BF16", **config: Any) -> FakeSource:
        family = FAMILIES[model_type]
        settings = {**family.defaults, **_SMALL, **config}
        settings |= {own: settings[usual] for usual, own in family.aliases.items()}
        return FakeSource(model_type, settings, bool(settings["tie_word_embeddings"]), dtype=dtype)

    return build


_SMALL = {
    "vocab_size": 64,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 128,
}


def _meaningless(folder: Path, config: Mapping[str, Any]) -> Vocabulary:
    size = config["vocab_size"]
    text, array, integer = GGUFValueType.STRING, GGUFValueType.ARRAY, GGUFValueType.INT32
    entries = (
        Entry("tokenizer.ggml.model", "gpt2", text),
        Entry("tokenizer.ggml.pre", "gpt-2", text),
        Entry("tokenizer.ggml.tokens", [f"t{n}" for n in range(size)], array, text),
        Entry("tokenizer.ggml.token_type", [1] * size, array, integer),
        Entry("tokenizer.ggml.merges", ["t 1"], array, text),
    )
    return Vocabulary(entries, size)
