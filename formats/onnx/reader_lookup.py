"""A table whose rows are looked up packed, and decoded by nodes of the standard afterwards.

(bytes >> shifts) & mask, minus a zero point, times a scale: looked for in that order behind a
Gather of uint8, whatever the nodes are called.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from onnx import NodeProto

from qconvert.formats.onnx.reader_files import Initializer
from qconvert.formats.onnx.reader_matrices import Matrix, block_matrix
from qconvert.formats.onnx.reader_sound import MOST_STEPS
from qconvert.formats.refusal import refuse

_OPENING = frozenset({"Unsqueeze", "BitShift", "BitwiseAnd", "Reshape", "Cast", "Slice"})


def looked_up(
    node: NodeProto,
    readers: Mapping[str, Sequence[NodeProto]],
    makers: Mapping[str, NodeProto],
    stored: Mapping[str, Initializer],
) -> Matrix | None:
    """The table of codes that a Gather takes rows of; None where nothing decodes them so.
    `Refused` where what decodes them is not what a block of codes with a zero point means."""
    codes = stored[node.input[0]]
    masks, value = [], node.output[0]
    for step in _forward(value, readers):
        value = step.output[0]
        if step.op_type == "BitwiseAnd" and step.input[1] in stored:
            masks.append(stored[step.input[1]].array.reshape(-1))
    minus = next((one for one in readers[value] if one.op_type == "Sub"), None)
    if minus is None:
        return None
    times = next((one for one in readers[minus.output[0]] if one.op_type == "Mul"), None)
    if times is None:
        raise refuse(f"{node.name}: codes are looked up, but not scaled")
    bits = int(masks[0][0]).bit_length() if masks and masks[0].size else 8
    scales = _source(times.input[1], makers, stored)
    zeros = _source(minus.input[1], makers, stored)
    if zeros.array.size == 1:
        middle = float(np.asarray(zeros.array, np.float32).reshape(-1)[0])
        if middle != 1 << (bits - 1):
            raise refuse(f"{node.name}: the zero point is {middle}, not {1 << (bits - 1)}")
    if not codes.nbytes or not bits or not scales.shape or not scales.shape[-1]:
        raise refuse(f"{node.name}: its table or its scales hold nothing")
    rows, columns = codes.shape[0], codes.nbytes * 8 // bits // codes.shape[0]
    block = columns // scales.shape[-1]
    return block_matrix(
        node.name, codes, scales, zeros if zeros.array.size > 1 else None, (rows, columns),
        bits, block,
    )  # fmt: skip


def _forward(value: str, readers: Mapping[str, Sequence[NodeProto]]) -> Iterator[NodeProto]:
    """The nodes that open bytes, one behind the other."""
    for _ in range(MOST_STEPS):
        if len(readers[value]) != 1 or readers[value][0].op_type not in _OPENING:
            break
        yield readers[value][0]
        value = readers[value][0].output[0]


def _source(
    value: str, makers: Mapping[str, NodeProto], stored: Mapping[str, Initializer]
) -> Initializer:
    """What is stored at the begin of a chain of nodes, by their first inputs."""
    asked = value
    for _ in range(MOST_STEPS):
        if value in stored:
            return stored[value]
        if value not in makers or not makers[value].input:
            break
        value = makers[value].input[0]
    raise refuse(f"{asked} is not made of what is stored")
