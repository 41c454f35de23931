"""A model seen through orthogonal matrices: the same float function, weights without outliers.

Vectors x of the residual stream become x Q. A norm without gain commutes with Q, so gains are
folded into the linears that read the norm; those rotate their columns, the linears that write to
the stream rotate their rows, and what cancels inside a head (v against o) is rotated by R. Source:
Ashkboos et al. 2024, "QuaRot", stages 1a and 1c, less what a runtime would have to compute online.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.algorithms.folding import joined_value_rows, sizes_of
from qconvert.algorithms.hadamard import Rotation, rotation
from qconvert.formats.source import Source, SourceTensor
from qconvert.models import FAMILIES, dimensions

Floats = NDArray[np.float32]

NORMS = ("attn_norm", "ffn_norm", "final_norm")
READERS: Mapping[str, str | None] = {
    "embedding": None, "head": "final_norm",
    "attn_q": "attn_norm", "attn_k": "attn_norm", "attn_v": "attn_norm", "attn_qkv": "attn_norm",
    "ffn_gate": "ffn_norm", "ffn_up": "ffn_norm", "ffn_gate_up": "ffn_norm",
}  # fmt: skip
"""Whose columns are channels of the stream, and the norm whose gain they take over."""
WRITERS = ("attn_o", "ffn_down")
"""Whose rows, and biases, are channels of the stream."""


@dataclass(frozen=True, slots=True)
class Rotated:
    """`formats.source.Source`: rows are rotated as they are read, in float64, rounded to float32.

    A writer is made whole, and kept until another tensor is asked for. `dtype` of a tensor is still
    that of the checkpoint: a tensor that is kept in 16 bits is rounded once more when written.
    """

    original: Source
    stream: Rotation  # Q
    heads: Rotation  # R, the same for each head
    tied: bool
    tensors: tuple[SourceTensor, ...]
    config: Mapping[str, Any]
    notes: tuple[str, ...]
    _stored: Mapping[tuple[int | None, str, str], SourceTensor] = field(repr=False)
    _whole: dict[str, Floats] = field(default_factory=dict, repr=False, compare=False)

    @property
    def folder(self) -> Path:
        return self.original.folder

    @property
    def model_type(self) -> str:
        return self.original.model_type

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the weights are read from."""
        return tuple(getattr(self.original, "files", ()))

    def rows(self, tensor: SourceTensor, start: int, stop: int) -> Floats:
        """Rows [start, stop) as float32, canonical orientation. Vectors count as one row: [n]."""
        if tensor.name not in self._whole:
            self._whole.clear()
        if tensor.part == "bias":
            return self._bias(tensor)
        if tensor.role in NORMS:
            return np.full(tensor.shape, 1 - self._offset, np.float32)
        if tensor.role in WRITERS:
            if tensor.name not in self._whole:
                self._whole[tensor.name] = self._written(tensor)
            return self._whole[tensor.name][start:stop].copy()
        if tensor.role in READERS:
            return self._read(tensor, start, stop)
        return self.original.rows(tensor, start, stop)

    @property
    def _offset(self) -> float:
        return FAMILIES[self.model_type].norm_offset

    def _bias(self, tensor: SourceTensor) -> Floats:
        values = self.original.rows(tensor, 0, 1)
        if tensor.role in WRITERS:
            return self.stream(values.astype(np.float64)).astype(np.float32)
        wide = values.astype(np.float64)
        for start in self._value_heads(tensor):
            span = slice(start, start + self.heads.size)
            wide[span] = self.heads(wide[span])
        return wide.astype(np.float32)

    def _read(self, tensor: SourceTensor, start: int, stop: int) -> Floats:
        """Rows of W diag(gain) Q; those of a head of v times R, for which the head is read."""
        head = self.heads.size
        touched = [at for at in self._value_heads(tensor) if at < stop and at + head > start]
        first, last = min([start, *touched]), max([stop, *(at + head for at in touched)])
        stored = self._stored.get((tensor.block, tensor.role, tensor.part), tensor)
        values = self.original.rows(stored, first, last) * self._gain(tensor)
        values = self.stream(values)
        for at in touched:
            span = slice(at - first, at - first + head)
            values[span] = self.heads(values[span].T).T
        return values[start - first : stop - first].astype(np.float32)

    def _gain(self, tensor: SourceTensor) -> NDArray[np.float64]:
        """What the norm before a reader multiplies by, [cols]; 1 where there is none."""
        norm = READERS[tensor.role]
        if norm is None:
            return np.ones(1)
        stored = self._stored[tensor.block, norm, "weight"]
        return self.original.rows(stored, 0, 1).astype(np.float64) + self._offset

    def _written(self, tensor: SourceTensor) -> Floats:
        """Q' W, and R on the columns of each head where they are values; a few columns at once."""
        w = self.original.rows(tensor, 0, tensor.shape[0])
        out = np.empty_like(w)
        for start in range(0, w.shape[1], self.heads.size):
            span = slice(start, start + self.heads.size)
            part = w[:, span].astype(np.float64)
            if tensor.role == "attn_o":
                part = self.heads(part)
            out[:, span] = self.stream(part.T).T
        return out

    def _value_heads(self, tensor: SourceTensor) -> list[int]:
        """The first row of each head of values in `tensor`; none where it makes no values."""
        sizes = sizes_of(self.original)
        rows = {"attn_v": np.arange(sizes.kv), "attn_qkv": joined_value_rows(sizes)}
        found: list[int] = rows.get(tensor.role, np.empty(0, np.intp))[:: sizes.head].tolist()
        return found


def rotated(source: Source, seed: int) -> Rotated:
    """`source` behind the rotations of `seed`. Its head is stored: it takes over the gain of the
    final norm, so it is no longer the embedding."""
    sizes = dimensions(source.config)
    stored: dict[tuple[int | None, str, str], SourceTensor] = {}
    stored.update({(tensor.block, tensor.role, tensor.part): tensor for tensor in source.tensors})
    tensors, notes = source.tensors, list(getattr(source, "notes", ()))
    notes.append("rotated: gains of norms are folded into the linears that read them")
    if source.tied:
        embedding = stored[None, "embedding", "weight"]
        name = f"{FAMILIES[source.model_type].head.path}.weight"
        tensors = (*tensors, replace(embedding, name=name, role="head"))
        stored[None, "head", "weight"] = embedding
        notes.append("rotated: the head is stored beside the embedding that it was tied to")
    return Rotated(
        source,
        rotation(sizes["hidden"], seed, 0),
        rotation(sizes["head"], seed, 1),
        False,
        tensors,
        {**source.config, "tie_word_embeddings": False},
        tuple(notes),
        stored,
    )
