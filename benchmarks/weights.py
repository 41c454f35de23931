"""Whole sets of weights to be judged: a source with the linears of its blocks replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import gguf
import numpy as np
from ggml import Ggml
from numpy.typing import NDArray

from qconvert.formats.source import Source, SourceTensor

Floats = NDArray[np.float32]
Weights = Mapping[str, Floats]


def block_linears(source: Source) -> dict[str, SourceTensor]:
    """The matrices inside the blocks, by name: what a pure type is put on."""
    inside = (tensor for tensor in source.tensors if tensor.block is not None)
    return {tensor.name: tensor for tensor in inside if len(tensor.shape) > 1}


class Replaced(Mapping[str, Floats]):
    """The weights of `source`, with those in `own` made by a function when they are asked for."""

    def __init__(self, source: Source, own: Mapping[str, Callable[[], Floats]]) -> None:
        self._source, self._own = source, own
        self._tensors = {tensor.name: tensor for tensor in source.tensors}

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __getitem__(self, name: str) -> Floats:
        if name in self._own:
            return self._own[name]()
        tensor = self._tensors[name]
        return stored(tensor, self._source.rows(tensor, 0, tensor.shape[0]))


def stored(tensor: SourceTensor, values: Floats) -> Floats:
    """`values` [out, in] in the orientation in which the checkpoint stores them."""
    return np.ascontiguousarray(values.T) if tensor.transposed else values


def pure_ggml(
    source: Source, kind: str, moments: Mapping[str, Floats] | None, ggml: Ggml
) -> Weights:
    """Block linears through ggml's own quantizer and back; the rest in float.

    `moments`: second moment of each input column, by tensor; None: no importance.
    """
    type_ = gguf.GGMLQuantizationType[kind]

    def one(tensor: SourceTensor) -> Callable[[], Floats]:
        def made() -> Floats:
            w = np.ascontiguousarray(source.rows(tensor, 0, tensor.shape[0]))
            weight = None if moments is None else np.ascontiguousarray(moments[tensor.name])
            packed = ggml.quantize(kind, w, weight)
            return stored(tensor, gguf.quants.dequantize(packed, type_).reshape(w.shape))

        return made

    return Replaced(source, {name: one(tensor) for name, tensor in block_linears(source).items()})
