"""The accuracy level of a graph's MatMulNBits: what it is, and the same graph with another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

OPERATOR = "MatMulNBits"
ATTRIBUTE = "accuracy_level"


@dataclass(frozen=True, slots=True)
class Levels:
    """The levels of a graph, and its bytes where they are no longer the file's."""

    found: Mapping[int, int]  # level -> nodes that have it in the file
    changed: bytes | None  # None: nothing had to be changed


def with_level(graph: bytes, level: int | None) -> Levels:
    """`graph`, a model.onnx whose tensors lie in another file, with `level` in every MatMulNBits;
    None: as it is."""
    import onnx

    model = onnx.ModelProto.FromString(graph)
    found: Counter[int] = Counter()
    differ = False
    for node in model.graph.node:
        if node.op_type != OPERATOR:
            continue
        named = next((one for one in node.attribute if one.name == ATTRIBUTE), None)
        has = 0 if named is None else int(named.i)
        found[has] += 1
        if level is not None and has != level:
            differ = True
            if named is None:
                named = node.attribute.add(name=ATTRIBUTE, type=onnx.AttributeProto.INT)
            named.i = level
    return Levels(dict(sorted(found.items())), model.SerializeToString() if differ else None)


def described(levels: Levels, level: int | None) -> str:
    """One line about what is computed; empty where nothing is quantized in this way."""
    if not levels.found:
        return ""
    told = ", ".join(f"level {one} in {count} nodes" for one, count in levels.found.items())
    if levels.changed is None:
        return f"{OPERATOR} at its accuracy {told}"
    return f"{OPERATOR} at accuracy level {level}; the file asks for {told}"
