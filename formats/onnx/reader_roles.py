"""What each stored weight of a decoder does, found by walking its graph from the attention nodes.

Names are not trusted: a weight is the key projection because attention reads it as keys.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
from onnx import NodeProto

from qconvert.formats.onnx.reader_graph import Graph, Weighted
from qconvert.formats.onnx.reader_matrices import Floats, Matrix
from qconvert.formats.onnx.reader_sound import MOST_STEPS, whole
from qconvert.formats.refusal import refuse

ATTENTION = frozenset({"GroupQueryAttention", "MultiHeadAttention", "Attention"})
NORMS = frozenset({"SimplifiedLayerNormalization", "LayerNormalization", "RMSNormalization"})
SKIP_NORMS = frozenset({"SkipSimplifiedLayerNormalization", "SkipLayerNormalization"})
BENDS = frozenset(
    {"Sigmoid", "Gelu", "FastGelu", "QuickGelu", "BiasGelu", "Tanh", "Erf", "Swish", "Relu"}
)
PASSED = frozenset(
    {"Reshape", "Transpose", "Cast", "Identity", "RotaryEmbedding", "Tanh", "Mul", "Div", "Add",
     "Squeeze", "Unsqueeze"}
)  # fmt: skip
"""Nodes between a weight and what it serves; of two inputs one may be stored."""
IDS, LOGITS = "input_ids", "logits"
_BLOCK = re.compile(r"\.(\d+)\.")

Key = tuple[int | None, str]  # block, role


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows [start, stop) of a matrix and of its bias."""

    of: Weighted
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.stop - self.start, self.of.matrix.shape[1]

    def weight(self) -> Floats:
        return self.of.matrix.rows(self.start, self.stop)

    def bias(self) -> Floats | None:
        return None if self.of.bias is None else self.of.bias[self.start : self.stop]


@dataclass(slots=True)
class Roles:
    """The weights of a graph by block and role."""

    graph: Graph
    linears: dict[Key, Rows] = field(default_factory=dict)
    vectors: dict[Key, tuple[str, Floats]] = field(default_factory=dict)  # norms: name, weight
    embedding: tuple[str, Matrix] | None = None

    @property
    def head(self) -> Rows:
        return self.linears[None, "head"]


def find_roles(graph: Graph) -> Roles:
    """`Refused` where the graph is not that of a decoder with gated MLPs, or multiplies by a matrix
    that has no place in it."""
    found = Roles(graph)
    attentions = [node for node in graph.nodes if node.op_type in ATTENTION]
    if not attentions:
        raise refuse("the graph has no attention that qconvert knows: " + ", ".join(ATTENTION))
    for at, node in enumerate(attentions):
        named = next((_BLOCK.search(one) for one in node.input if one.startswith("past")), None)
        block = at if named is None else int(named[1])
        _attention(found, block, node)
        _mlp(found, block, node)
    head = _up(found, LOGITS, None, ())
    found.linears[None, "head"] = _whole(head)
    _norm_before(found, (None, "final_norm"), head.input)
    found.embedding = _embedding(graph)
    _refuse_unknown(found)
    return found


def _attention(found: Roles, block: int, node: NodeProto) -> None:
    """Queries, keys and values: one matrix, or three, or one that is split."""
    if len(node.input) > 1 and node.input[1]:
        for letter, value in zip("qkv", node.input[:3], strict=True):
            one, rows = _piece(found, value, block, letter)
            found.linears[block, f"attn_{letter}"] = Rows(one, *rows)
    else:
        one = _up(found, node.input[0], block, ())
        heads = whole(node, "num_heads", least=1)
        kept = whole(node, "kv_num_heads", heads, least=1)
        width, rest = divmod(one.matrix.shape[0], heads + 2 * kept)
        if rest:
            raise refuse(f"{one.name} has {one.matrix.shape[0]} rows, which {heads} heads and"
                         f" {kept} of keys and values do not divide")  # fmt: skip
        cuts = np.cumsum([0, heads * width, kept * width, kept * width]).tolist()
        for letter, start, stop in zip("qkv", cuts, cuts[1:], strict=False):
            found.linears[block, f"attn_{letter}"] = Rows(one, start, stop)
    _norm_before(found, (block, "attn_norm"), one.input)


def _piece(found: Roles, value: str, block: int, letter: str) -> tuple[Weighted, tuple[int, int]]:
    """The matrix that `value` comes from, and which of its rows."""
    splits: list[tuple[NodeProto, str]] = []
    one = _up(found, value, block, (f"attn_{letter}_norm",), splits)
    if not splits:
        return one, (0, one.matrix.shape[0])
    node, taken = splits[0]
    if len(node.input) < 2:
        raise refuse(f"{node.name} does not say what it splits into")
    sizes = found.graph.whole_numbers(node.input[1])
    if (sizes < 0).any() or sizes.sum() != one.matrix.shape[0]:
        raise refuse(f"{node.name} splits {one.matrix.shape[0]} rows into {sizes.tolist()[:8]}")
    at = list(node.output).index(taken)
    return one, (int(sizes[:at].sum()), int(sizes[: at + 1].sum()))


def _mlp(found: Roles, block: int, node: NodeProto) -> None:
    """What follows an attention: its output, the gated MLP, and the norms between."""
    graph = found.graph
    out = _down(graph, node.output[0])
    found.linears[block, "attn_o"] = _whole(out)
    normed = _norm_after(found, block, out.output, "ffn_norm", "attn_post_norm")
    both = [_weighted(graph, one) for one in graph.readers[normed]]
    readers = [one for one in both if one is not None]
    bent = [_is_bent(graph, one.output) for one in readers]
    if sorted(bent) != [False, True]:
        names = ", ".join(one.name for one in readers)
        raise refuse(f"block {block}: an MLP of {names or 'nothing'} is not gate and up")
    found.linears[block, "ffn_gate"] = _whole(readers[bent.index(True)])
    up = readers[bent.index(False)]
    found.linears[block, "ffn_up"] = _whole(up)
    down = _down(graph, up.output)
    found.linears[block, "ffn_down"] = _whole(down)
    _norm_after(found, block, down.output, "", "ffn_post_norm")


def _is_bent(graph: Graph, value: str) -> bool:
    return any(one.op_type in BENDS for one in graph.readers[value])


def _whole(one: Weighted) -> Rows:
    return Rows(one, 0, one.matrix.shape[0])


def _weighted(graph: Graph, node: NodeProto) -> Weighted | None:
    return graph.weighted.get(node.output[0])


def _up(
    found: Roles,
    value: str,
    block: int | None,
    norms: tuple[str, ...],
    splits: list[tuple[NodeProto, str]] | None = None,
) -> Weighted:
    """The matrix that `value` comes from. Norms on the way are kept as `norms`."""
    graph, asked = found.graph, value
    for _ in range(MOST_STEPS):
        node = graph.makers.get(value)
        if node is None:
            break
        one = _weighted(graph, node)
        if one is not None:
            return one
        if node.op_type in NORMS and norms:
            _keep(found, (block, norms[0]), node.input[1])
        elif node.op_type == "Split" and splits is not None:
            splits.append((node, value))
        elif node.op_type not in PASSED:
            break
        computed = [name for name in node.input if name and graph.initializer(name) is None]
        value = computed[0] if computed else ""
    raise refuse(f"nothing is multiplied by a stored matrix to make {asked}")


def _down(graph: Graph, value: str) -> Weighted:
    """The first matrix that what comes of `value` is multiplied with."""
    asked = value
    for _ in range(MOST_STEPS):
        after = [(node, _weighted(graph, node)) for node in graph.readers[value]]
        one = next((found for _, found in after if found is not None), None)
        if one is not None:
            return one
        node = next((node for node, _ in after if node.op_type in PASSED), None)
        if node is None:
            break
        value = node.output[0]
    raise refuse(f"{asked} is not multiplied by a stored matrix")


def _norm_before(found: Roles, key: Key, value: str) -> None:
    """The norm that makes `value`."""
    node = found.graph.makers.get(value)
    if node is None or node.op_type not in NORMS | SKIP_NORMS:
        raise refuse(f"{value} is not the output of a norm that qconvert knows")
    _keep(found, key, node.input[2 if node.op_type in SKIP_NORMS else 1])


def _norm_after(found: Roles, block: int, value: str, role: str, post: str) -> str:
    """What is made of `value` by the norm behind the sum with the residual, which is kept as
    `role` (empty: it is another block's); a norm in front of the sum is kept as `post`."""
    graph, asked = found.graph, value
    for _ in range(4):
        for node in graph.readers[value]:
            if node.op_type in SKIP_NORMS:
                if role:
                    _keep(found, (block, role), node.input[2])
                return str(node.output[0])
        nodes = {node.op_type: node for node in graph.readers[value]}
        norm = next((nodes[name] for name in NORMS if name in nodes), None)
        if "Add" in nodes and norm is None:
            value = nodes["Add"].output[0]
            role, post = role, ""  # behind the sum: the norm of what comes next
        elif norm is not None and post:
            _keep(found, (block, post), norm.input[1])
            value, post = norm.output[0], ""
        elif norm is not None:
            if role:
                _keep(found, (block, role), norm.input[1])
            return str(norm.output[0])
        else:
            break
    raise refuse(f"{asked} is not added to what came before and normed")


def _keep(found: Roles, key: Key, value: str) -> None:
    weight = found.graph.vector(value)
    if weight is None:
        raise refuse(f"the norm's weight {value} is not stored in the folder")
    found.vectors[key] = (value, weight)


def _embedding(graph: Graph) -> tuple[str, Matrix]:
    for node in graph.readers[IDS]:
        if len(node.input) > 1 and node.input[1] == IDS:
            found = graph.table(node)
            if found is not None:
                return node.name, found
    raise refuse(f"no rows of a stored table are taken for {IDS}")


def _refuse_unknown(found: Roles) -> None:
    """Every matrix that is multiplied with has a role."""
    known = {id(rows.of) for rows in found.linears.values()}
    others = [one.name for one in found.graph.weighted.values() if id(one) not in known]
    if others:
        shown = ", ".join(sorted(others)[:5])
        raise refuse(f"the graph multiplies by more than a decoder's matrices: {shown}")
