"""Dialect: which operators a graph is written in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from qconvert.formats.onnx.drawing import Drawing
from qconvert.formats.onnx.matrices import Matrix
from qconvert.formats.onnx.model import Layer, Model
from qconvert.formats.onnx.stores import Part


class Dialect(Protocol):
    """Adds nodes to a drawing. Hidden values are float32 [batch_size, sequence_length, columns];
    results are names of values."""

    @property
    def opsets(self) -> Mapping[str, int]:
        """Domain -> version."""
        ...

    @property
    def ir_version(self) -> int: ...
    @property
    def joins(self) -> bool:
        """Whether its attention takes q, k and v as one value."""
        ...

    @property
    def shares_buffer(self) -> bool:
        """Whether past and present keys and values may be one buffer of the longest text."""
        ...

    def begin(self, drawing: Drawing, model: Model) -> None:
        """What all layers read: lengths, masks, positions."""
        ...

    def embedding(self, drawing: Drawing, matrix: Matrix) -> str:
        """The rows of `input_ids`."""
        ...

    def linear(self, drawing: Drawing, x: str, matrix: Matrix, output: str = "") -> str:
        """`x` times the matrix transposed, plus its bias. `output`: the name of the result."""
        ...

    def norm(self, drawing: Drawing, model: Model, x: str, weight: Part, name: str) -> str:
        """RMS norm over the last axis, times the vector `weight`."""
        ...

    def add_norm(
        self, drawing: Drawing, model: Model, residual: str, delta: str, weight: Part, name: str
    ) -> tuple[str, str]:
        """(norm of the sum, sum) of two values."""
        ...

    def attention(
        self, drawing: Drawing, model: Model, at: int, layer: Layer, qkv: Sequence[str]
    ) -> str:
        """Causal attention of layer `at` with its cache; `qkv`: one value of all, or three."""
        ...
