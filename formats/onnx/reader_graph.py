"""A graph that can be walked: who makes a value, who reads it, what a node multiplies by."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from qconvert.formats.onnx.reader_dequantize import Linear as Dequantize
from qconvert.formats.onnx.reader_dequantize import dequantized
from qconvert.formats.onnx.reader_files import Initializer, Opened
from qconvert.formats.onnx.reader_lookup import looked_up
from qconvert.formats.onnx.reader_matrices import (
    Floats,
    Matrix,
    block_matrix,
    float_matrix,
    floats,
)
from qconvert.formats.onnx.reader_sound import MOST_STEPS, whole
from qconvert.formats.refusal import refuse

RENAMES = frozenset({"Reshape", "Transpose", "Cast", "Identity"})
"""Nodes that leave stored values what they are."""
G_IDX = 4  # input of MatMulNBits
_LAST = re.compile(r"/[A-Za-z]\w*$")


@dataclass(frozen=True, slots=True)
class Weighted:
    """A node that multiplies what it reads by a stored matrix, with the bias that is added."""

    name: str  # as it is shown: "model.layers.0.attn.o_proj"
    node: NodeProto
    matrix: Matrix
    bias: Floats | None
    output: str  # after the bias

    @property
    def input(self) -> str:
        return str(self.node.input[0])


@dataclass(slots=True)
class Graph:
    """Nodes by the values that they make and read."""

    opened: Opened
    makers: dict[str, NodeProto] = field(default_factory=dict)
    readers: dict[str, list[NodeProto]] = field(default_factory=lambda: defaultdict(list))
    weighted: dict[str, Weighted] = field(default_factory=dict)  # by a node's first output

    def __post_init__(self) -> None:
        for node in self.nodes:
            self.makers.update(dict.fromkeys((one for one in node.output if one), node))
            for value in dict.fromkeys(node.input):
                if value:
                    self.readers[value].append(node)
        for node in self.nodes:
            matrix = self._matrix(node)
            if matrix is not None:
                bias, output = self._bias(node, matrix)
                name = dotted(node.name or node.output[0])
                self.weighted[node.output[0]] = Weighted(name, node, matrix, bias, output)

    @property
    def nodes(self) -> Sequence[NodeProto]:
        found: Sequence[NodeProto] = self.opened.model.graph.node
        return found

    @property
    def stored(self) -> Mapping[str, Initializer]:
        return self.opened.stored

    def initializer(self, value: str) -> Initializer | None:
        """What is stored as `value`, also behind nodes that only rename or reshape it."""
        for _ in range(MOST_STEPS):
            if value in self.stored:
                return self.stored[value]
            maker = self.makers.get(value)
            if maker is None or maker.op_type not in RENAMES:
                return None
            value = maker.input[0]
        return None

    def vector(self, value: str) -> Floats | None:
        """A stored float vector."""
        found = self.initializer(value)
        return floats(found) if found is not None and len(found.shape) == 1 else None

    def whole_numbers(self, value: str) -> NDArray[np.int64]:
        found = self.initializer(value)
        if found is None:
            raise refuse(f"{value} is computed, where qconvert reads what is stored")
        return found.array.astype(np.int64).reshape(-1)

    def table(self, node: NodeProto) -> Matrix | None:
        """The matrix whose rows a Gather or GatherBlockQuantized takes."""
        if node.op_type == "GatherBlockQuantized":
            if whole(node, "gather_axis", 0) != 0 or whole(node, "quantize_axis", 1) != 1:
                raise refuse(f"{node.name} gathers along another axis than qconvert reads")
            codes, scales, zeros = self._parts(node, 0, 2, 3)
            bits, block = whole(node, "bits", 4, least=1), whole(node, "block_size", 128)
            if not scales.shape or not scales.shape[0]:
                raise refuse(f"{node.name}: {scales.name} has no rows")
            shape = (scales.shape[0], codes.nbytes * 8 // bits // scales.shape[0])
            return block_matrix(node.name, codes, scales, zeros, shape, bits, block)
        if node.op_type != "Gather":
            return None
        if node.input[0] in self.stored and self.stored[node.input[0]].dtype == TensorProto.UINT8:
            return looked_up(node, self.readers, self.makers, self.stored)
        return self._constant_matrix(node.input[0], transposed=False)

    def _matrix(self, node: NodeProto) -> Matrix | None:
        """What a node multiplies by, [out, in]; None where it multiplies computed values."""
        if node.op_type == "MatMulNBits":
            if len(node.input) > G_IDX and node.input[G_IDX]:
                raise refuse(f"{node.name} has a g_idx, with which ONNX Runtime computes silently"
                             " wrong results", "quantize without activation order")  # fmt: skip
            codes, scales, zeros = self._parts(node, 1, 2, 3)
            bits, block = whole(node, "bits", 4), whole(node, "block_size")
            level = whole(node, "accuracy_level", 0)
            shape = (whole(node, "N", least=1), whole(node, "K", least=1))
            return block_matrix(node.name, codes, scales, zeros, shape, bits, block, level)
        if node.op_type in ("MatMul", "FusedMatMul", "Gemm"):
            return self._constant_matrix(node.input[1], transposed=not whole(node, "transB", 0),
                                         fusable=node.op_type == "MatMul")  # fmt: skip
        return None

    def _constant_matrix(
        self, value: str, *, transposed: bool, fusable: bool = False
    ) -> Matrix | None:
        """A stored matrix, plain or behind DequantizeLinear, and perhaps behind a Transpose."""
        maker = self.makers.get(value)
        for _ in range(MOST_STEPS):
            if maker is None or maker.op_type != "Transpose":
                break
            value, transposed, fusable = maker.input[0], not transposed, False
            maker = self.makers.get(value)
        if maker is not None and maker.op_type == "DequantizeLinear":
            codes, scales, zeros = self._parts(maker, 0, 1, 2)
            axis = whole(maker, "axis", 1, least=-8) % max(len(codes.shape), 1)
            block = whole(maker, "block_size", 0)
            one = Dequantize(maker.name, codes, scales, zeros, axis, block)
            fused = fusable and transposed and axis == 0
            return dequantized(one, transposed=transposed, fused=fused)
        found = self.initializer(value)
        if found is None or len(found.shape) != 2:
            return None
        return float_matrix(found, transposed=transposed)

    def _parts(
        self, node: NodeProto, codes: int, scales: int, zeros: int
    ) -> tuple[Initializer, Initializer, Initializer | None]:
        """Stored inputs of a node, by their places."""
        found = []
        for at in (codes, scales, zeros):
            name = node.input[at] if at < len(node.input) else ""
            one = self.initializer(name) if name else None
            if one is None and (name or at != zeros):
                raise refuse(f"{node.name}: its input {name or at} is not stored in the folder")
            found.append(one)
        first, second, third = found
        assert first is not None
        assert second is not None
        return first, second, third

    def _bias(self, node: NodeProto, matrix: Matrix) -> tuple[Floats | None, str]:
        """The bias, of the node itself or of an Add that alone reads it; and the sum's value."""
        place = {"MatMulNBits": 5, "Gemm": 2}.get(node.op_type, len(node.input))
        if place < len(node.input) and node.input[place]:
            return self.vector(node.input[place]), node.output[0]
        readers = self.readers[node.output[0]]
        if len(readers) == 1 and readers[0].op_type == "Add":
            for value in readers[0].input:
                found = self.vector(value)
                if found is not None and found.shape == matrix.shape[:1]:
                    return found, readers[0].output[0]
        return None, node.output[0]


def dotted(name: str) -> str:
    """A node's name without the operator: "/model/layers.0/attn/o_proj/MatMulNBits" as
    "model.layers.0.attn.o_proj"."""
    return _LAST.sub("", name).removeprefix("/").replace("/", ".") or name
