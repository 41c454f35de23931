"""Models of which there is nothing but headers: a plan that reads a weight fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from qconvert.formats.source import Dtype, SourceTensor
from qconvert.models import FAMILIES

COMMON: Mapping[str, Any] = {
    "vocab_size": 512, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
    "tie_word_embeddings": False,
}  # fmt: skip


@dataclass(frozen=True)
class Headers:
    """`formats.source.Source` without weights."""

    folder: Path
    config: Mapping[str, Any]
    model_type: str
    tied: bool
    tensors: tuple[SourceTensor, ...]

    def rows(self, tensor: SourceTensor, start: int, stop: int) -> NoReturn:
        raise AssertionError(f"{tensor.name} was read for a plan")


@pytest.fixture
def headers(tmp_path: Path) -> Callable[..., Headers]:
    """`headers(model_type, dtype="BF16", files=(), **config)`: as `open_checkpoint` gives it."""

    def build(
        model_type: str = "llama", dtype: Dtype = "BF16", files: tuple[str, ...] = (), **own: Any
    ) -> Headers:
        family = FAMILIES[model_type]
        config = {"model_type": model_type, **family.defaults, **COMMON, **own}
        tied = bool(config["tie_word_embeddings"])
        folder = tmp_path / f"tiny-{model_type}"
        folder.mkdir(exist_ok=True)
        for name in files:
            (folder / name).write_text("{}", encoding="utf-8")
        tensors = tuple(
            SourceTensor(
                one.full_name, one.role, one.part, one.block, one.shape, dtype, one.transposed
            )
            for one in family.expected(config, head=not tied)
        )
        return Headers(folder, config, model_type, tied, tensors)

    return build
