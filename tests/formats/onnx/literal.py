"""A folder read back by the letter of the operators' schemas: shares nothing with the writer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

Floats = NDArray[np.float32]
OURS = {"attn": "self_attn"}  # part of a node's name -> of a module's


class Graph:
    """model.onnx and the bytes beside it."""

    def __init__(self, folder: Path) -> None:
        self.model = onnx.load(folder / "model.onnx", load_external_data=False)
        self.data = (folder / "model.onnx.data").read_bytes()
        self.initializers = {one.name: one for one in self.model.graph.initializer}
        self.nodes = list(self.model.graph.node)

    def raw(self, name: str) -> NDArray[np.uint8]:
        where = {one.key: one.value for one in self.initializers[name].external_data}
        assert where["location"] == "model.onnx.data"
        begin = int(where["offset"])
        return np.frombuffer(self.data[begin : begin + int(where["length"])], np.uint8)

    def array(self, name: str) -> NDArray[Any]:
        one = self.initializers[name]
        kinds: dict[int, Any] = {1: "<f4", 2: np.uint8, 3: np.int8}
        return self.raw(name).view(kinds[one.data_type]).reshape(one.dims)

    def by_operator(self, name: str) -> list[onnx.NodeProto]:
        return [one for one in self.nodes if one.op_type == name]


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}


def unpacked(packed: NDArray[np.uint8], width: int, count: int) -> NDArray[np.int64]:
    """[rows, bytes] -> [rows, count], the first value in the lowest bits."""
    bits = np.unpackbits(packed, axis=1, bitorder="little")
    values = bits[:, : bits.shape[1] // width * width].reshape(len(packed), -1, width)
    return (values.astype(np.int64) << np.arange(width)).sum(axis=2)[:, :count]


def multiplied(graph: Graph, node: onnx.NodeProto) -> Floats:
    """The matrix [N, K] that a MatMulNBits node multiplies by: (code - zero) * scale."""
    told = attributes(node)
    n, k, bits, block = told["N"], told["K"], told["bits"], told["block_size"]
    assert k % block == 0
    inputs = [*node.input, "", "", ""]
    codes = unpacked(graph.array(inputs[1]).reshape(n, -1), bits, k)
    scales = graph.array(inputs[2])
    zeros: Any = 1 << (bits - 1)
    if inputs[3]:
        packed = graph.array(inputs[3])
        zeros = np.repeat(unpacked(packed, bits, k // block), block, axis=1)
    return ((codes - zeros) * np.repeat(scales, block, axis=1)).astype(np.float32)


def gathered(graph: Graph, node: onnx.NodeProto) -> Floats:
    """The table that a GatherBlockQuantized node reads rows of."""
    told = attributes(node)
    inputs = [*node.input, ""]
    packed, scales = graph.array(inputs[0]), graph.array(inputs[2])
    bits, block = told["bits"], told["block_size"]
    columns = packed.shape[1] * 8 // bits
    codes = unpacked(packed, bits, columns)
    zeros: Any = 1 << (bits - 1)
    if inputs[3]:
        zeros = np.repeat(unpacked(graph.array(inputs[3]), bits, columns // block), block, axis=1)
    return ((codes - zeros) * np.repeat(scales, block, axis=1)).astype(np.float32)


def looked_up(graph: Graph, name: str) -> Floats:
    """The table whose rows a graph of standard operators gathers and then decodes."""
    packed, scales = graph.array(name), graph.array(name.replace("qweight", "scales"))
    packed = packed.reshape(len(packed), -1)
    mask = next(one for one in graph.nodes if one.op_type in ("BitwiseAnd", "MatMul"))
    top = (
        onnx.numpy_helper.to_array(graph.initializers[mask.input[1]])
        if mask.op_type == "BitwiseAnd"
        else 255
    )
    bits = int(top).bit_length()
    columns = packed.shape[1] * 8 // bits
    block = columns // scales.shape[1]
    codes = unpacked(packed, bits, columns)
    zeros: Any = 1 << (bits - 1)
    other = name.replace("qweight", "qzeros")
    if other in graph.initializers:
        zeros = np.repeat(unpacked(graph.array(other), bits, columns // block), block, axis=1)
    return ((codes - zeros) * np.repeat(scales, block, axis=1)).astype(np.float32)


def dequantized(graph: Graph, node: onnx.NodeProto) -> Floats:
    """The matrix [rows, cols] of the checkpoint that a DequantizeLinear node stands for."""
    told = attributes(node)
    block, axis = told["block_size"], told["axis"]

    def elements(name: str) -> NDArray[np.int64]:
        one = graph.initializers[name]
        signed = one.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.INT8)
        width = 4 if one.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4) else 8
        count = int(np.prod(one.dims))
        values = unpacked(graph.raw(name)[None], width, count)[0]
        if signed:
            values = np.where(values >= 1 << (width - 1), values - (1 << width), values)
        return values.reshape(one.dims)

    values = elements(node.input[0])
    zeros: Any = 0
    if len(node.input) > 2:
        zeros = np.repeat(elements(node.input[2]), block, axis=axis)
    scales = np.repeat(graph.array(node.input[1]), block, axis=axis)
    found = ((values - zeros) * scales).astype(np.float32)
    return found.T if axis == 0 else found


def modules(graph: Graph) -> dict[str, Floats]:
    """Everything by names of the checkpoint, q, k and v still joined where they are."""
    found: dict[str, Floats] = {}
    for node in graph.nodes:
        stem = module(node.name)
        if node.op_type == "MatMulNBits":
            found[f"{stem}.weight"] = multiplied(graph, node)
            if len(node.input) > 5:
                found[f"{stem}.bias"] = graph.array(node.input[5])
        elif node.op_type == "FusedMatMul":
            found[f"{stem}.weight"] = graph.array(node.input[1])
        elif node.op_type == "Add" and node.input[1] in graph.initializers:
            found[f"{stem}.bias"] = graph.array(node.input[1])
        elif node.op_type == "GatherBlockQuantized":
            found["model.embed_tokens.weight"] = gathered(graph, node)
        elif node.op_type == "Gather" and node.input[0] == "model.embed_tokens.weight":
            found["model.embed_tokens.weight"] = graph.array(node.input[0])
        elif node.op_type == "Gather" and node.input[0].endswith(".qweight"):
            found["model.embed_tokens.weight"] = looked_up(graph, node.input[0])
        elif node.op_type == "DequantizeLinear":
            found[f"{stem}.weight"] = dequantized(graph, node)
        elif node.op_type == "Transpose":
            found[f"{stem}.weight"] = graph.array(node.input[0])
        elif "LayerNorm" in node.op_type or node.op_type == "RMSNormalization":
            name = node.input[2 if "Skip" in node.op_type else 1]
            found[name] = graph.array(name)
    return found


def module(node: str) -> str:
    """ "/model/layers.0/attn/qkv_proj/MatMulNBits" -> "model.layers.0.self_attn.qkv_proj" """
    parts = node.strip("/").split("/")[:-1]
    return ".".join(OURS.get(part, part) for part in parts)


def state(
    graph: Graph, shapes: Mapping[str, tuple[int, ...]], add: float = 0.0
) -> dict[str, Floats]:
    """What `load_state_dict` takes for a model with these `shapes`; `add`: what norms had added."""
    found = modules(graph)
    made = {}
    for name, shape in shapes.items():
        if name in found:
            made[name] = found[name] - np.float32(add if "norm" in name else 0)
        elif re.search(r"\.[qkv]_proj\.", name):
            letter = name.rsplit("_proj", 1)[0][-1]
            whole = found[name.replace(f"{letter}_proj", "qkv_proj")]
            rows = {one: shapes[name.replace(f"{letter}_proj", f"{one}_proj")][0] for one in "qkv"}
            start = sum(rows[one] for one in "qkv"[: "qkv".index(letter)])
            made[name] = whole[start : start + rows[letter]]
        elif ".gate_up_proj." in name:
            halves = [found[name.replace("gate_up_proj", one)] for one in ("gate_proj", "up_proj")]
            made[name] = np.concatenate(halves)
        elif ".qkv_proj." in name:
            parts = [found[name.replace("qkv_proj", f"{one}_proj")] for one in "qkv"]
            made[name] = np.concatenate(parts)
        assert made[name].shape == tuple(shape), name
    return made
