"""Whether a graph can be walked: no cycles, every node has what is read of it, all sizes are sane.

ONNX's own checker asks for more, and reads all weights for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from itertools import islice
from typing import Any

from onnx import AttributeProto, ModelProto, NodeProto

from qconvert.formats.refusal import Reason, raise_if_any, refuse

MOST_NODES = 1 << 15
MOST_ATTENTIONS = 1024
MOST_STEPS = 64
"""Nodes between a weight and what it serves, at most: walks end there."""
SHOWN = 8
INPUTS: Mapping[str, int] = {
    "MatMulNBits": 3, "GatherBlockQuantized": 3, "Gather": 2, "MatMul": 2, "FusedMatMul": 2,
    "Gemm": 2, "DequantizeLinear": 2, "Transpose": 1, "Reshape": 1, "Cast": 1, "Identity": 1,
    "Split": 1, "BitwiseAnd": 2, "Sub": 2, "Mul": 2, "SimplifiedLayerNormalization": 2,
    "LayerNormalization": 2, "RMSNormalization": 2, "SkipSimplifiedLayerNormalization": 3,
    "SkipLayerNormalization": 3, "GroupQueryAttention": 3, "MultiHeadAttention": 3, "Attention": 3,
}  # fmt: skip
"""What a node of a kind must have; optional ones may be empty."""


_KINDS: Mapping[str, int] = {
    **dict.fromkeys(
        ("num_heads", "kv_num_heads", "local_window_size", "axis", "block_size", "bits", "N", "K",
         "accuracy_level", "to", "interleaved", "do_rotary"),
        AttributeProto.INT,
    ),
    **dict.fromkeys(("epsilon", "softcap"), AttributeProto.FLOAT),
}  # fmt: skip
"""What attributes are, of whatever node."""


def check_graph(model: ModelProto) -> None:
    """`Refused` where the graph cannot be one."""
    nodes = model.graph.node
    stored = (held.name for held in model.graph.initializer)
    if not all(isinstance(one, str) for one in (model.producer_name, *stored)):
        raise refuse("its names are not UTF-8")
    if len(nodes) > MOST_NODES:
        raise refuse(f"the graph has {len(nodes):,} nodes: at most {MOST_NODES:,} are read")
    raise_if_any(list(islice(_problems(nodes), SHOWN)))
    makers = {name: at for at, node in enumerate(nodes) for name in node.output if name}
    before = {at: {makers[name] for name in node.input if name in makers}
              for at, node in enumerate(nodes)}  # fmt: skip
    try:
        TopologicalSorter(before).prepare()
    except CycleError as cycle:
        raise refuse(f"node {nodes[cycle.args[1][0]].name!r} reads what is made of it") from None


def _texts(node: NodeProto) -> Iterator[Any]:
    """Of a field that is not UTF-8, the library gives bytes."""
    yield from (node.name, node.op_type, *node.input, *node.output)
    yield from (one.name for one in node.attribute)


def _problems(nodes: Any) -> Iterator[Reason]:
    made: set[str] = set()
    attentions = 0
    for node in nodes:
        if not all(isinstance(one, str) for one in _texts(node)):
            yield Reason(f"node {node.name!r}: its names are not UTF-8")
            continue
        if not node.output or not node.output[0]:
            yield Reason(f"node {node.name!r}, {node.op_type}, makes nothing")
            continue
        if len(node.input) < INPUTS.get(node.op_type, 0):
            yield Reason(f"node {node.name!r}, {node.op_type}, has {len(node.input)} inputs")
        for one in node.attribute:
            if one.type == AttributeProto.UNDEFINED or one.type != _KINDS.get(one.name, one.type):
                yield Reason(f"node {node.name!r}: its {one.name!r} is of another kind")
        twice = made & set(node.output) - {""}
        if twice:
            yield Reason(f"{min(twice)!r} is made by two nodes")
        made |= set(node.output)
        attentions += "Attention" in node.op_type
    if attentions > MOST_ATTENTIONS:
        yield Reason(f"{attentions:,} attentions: at most {MOST_ATTENTIONS:,} are read")


def whole(node: NodeProto, name: str, default: int | None = None, *, least: int = 0) -> int:
    """An attribute that is a whole number; `Refused` where it is another kind, or missing without a
    `default`."""
    found = next((one for one in node.attribute if one.name == name), None)
    if found is None and default is not None:
        return default
    if found is None or found.type != AttributeProto.INT or not least <= found.i < 1 << 31:
        shown = (
            "missing" if found is None else found.i if found.HasField("i") else "of another kind"
        )
        raise refuse(f"{node.name}: its {name} is {shown}, where a whole number of at least {least}"
                     " is needed")  # fmt: skip
    return int(found.i)
