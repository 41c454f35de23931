"""What a planter can do to an output, whatever its format: weights by checkpoint name, settings by
the keys of config.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from planting.files import Files

Fields = dict[str, NDArray[Any]]
"""One weight as it is stored, rows first. "value": a float tensor. Of a quantized one: "code"
[out, in] as integers or 8-bit floats; "scale" [out, groups] in its stored type; "zero" [out,
groups], integers; and what else a block holds ("min", "sub")."""
Culprits = Collection[str]


@dataclass(frozen=True, slots=True)
class Facts:
    """Of the source model, from its own config.json."""

    config: Mapping[str, Any]

    def of(self, key: str, usual: Any = None) -> Any:
        found = self.config.get(key)
        return usual if found is None else found

    @property
    def blocks(self) -> int:
        return int(self.config["num_hidden_layers"])

    @property
    def heads(self) -> int:
        return int(self.config["num_attention_heads"])

    @property
    def kv_heads(self) -> int:
        return int(self.of("num_key_value_heads", self.heads))

    @property
    def head_dim(self) -> int:
        return int(self.of("head_dim", self.config["hidden_size"] // self.heads))

    @property
    def tied(self) -> bool:
        return bool(self.of("tie_word_embeddings", False))

    @property
    def rope(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.of("rope_parameters", {})
        return found


def facts(model: Path) -> Facts:
    return Facts(json.loads((model / "config.json").read_text("utf-8")))


class Output(Protocol):
    """A copy that is being damaged. Methods raise `Inapplicable` where a format has no such thing.

    A method that changes something other than a weight returns the names under which a good
    diagnosis may report it.
    """

    format: str
    files: Files
    facts: Facts
    rope_pairs: bool  # q and k rows lie in llama.cpp's order, neighbours rotated together

    def get(self, weight: str) -> Fields:
        """A weight as stored; arrays are the caller's own."""
        ...

    def put(self, weight: str, fields: Fields) -> None:
        """Store it again: same fields, shapes and types."""
        ...

    def setting(self, key: str, value: Any) -> Culprits:
        """Say otherwise of config.json's `key`, wherever the format keeps it."""
        ...

    def drop(self, weight: str) -> Culprits:
        """The weight is no longer in the file."""
        ...

    def add_head(self, values: NDArray[np.float32]) -> Culprits:
        """A head [vocab, hidden] of its own in the file of a tied model."""
        ...

    def token(self, key: str, value: Any) -> Culprits:
        """Say otherwise of a special token: "bos_token_id", "add_bos_token", ..."""
        ...

    def tokenizer(self, change: Callable[[Vocabulary], None]) -> Culprits:
        """Change the vocabulary, the merges or how text is cut."""
        ...

    def template(self, text: str | None) -> Culprits:
        """Another chat template, or none."""
        ...

    def generation(self, key: str, value: Any) -> Culprits:
        """Say otherwise of generation_config.json's `key`; None: it is lost."""
        ...

    def data_files(self) -> list[str]:
        """The files with tensor data, in order."""
        ...

    def span(self, weight: str) -> tuple[str, int, int]:
        """File, offset and length of the bytes that hold most of a weight."""
        ...

    def finish(self) -> None:
        """Checksums that a writer would have made of the damaged bytes."""
        ...


@dataclass(slots=True)
class Vocabulary:
    """The parts of a tokenizer that every format holds."""

    tokens: list[str]  # in order of their ids
    merges: list[str]  # "a b", in order of rank
    special: dict[int, bool]  # id of an added token -> whether it is a special one
    cut: str  # how text is cut before merging: "as it was" until a planter says otherwise


CUT_AS_IT_WAS = "as it was"
CUT_OTHERWISE = "otherwise"
