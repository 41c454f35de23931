"""The matrices that the graph multiplies by: which rows of which tensors each is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qconvert.formats.onnx.choice import Choice
from qconvert.formats.onnx.kinds import Kind
from qconvert.formats.onnx.model import Model
from qconvert.formats.onnx.stores import Part
from qconvert.formats.serving.fused import module_of
from qconvert.formats.source import Source, SourceTensor

HEAD = "lm_head"


@dataclass(frozen=True, slots=True)
class Matrix:
    name: str  # below the graph's root: "model/layers.0/attn/qkv_proj"
    parts: tuple[Part, ...]  # one below the other
    cols: int
    kind: Kind
    bias: tuple[Part, ...] = ()

    @property
    def rows(self) -> int:
        return sum(part.count for part in self.parts)


@dataclass(frozen=True, slots=True)
class Block:
    """The matrices and vectors of one block."""

    qkv: tuple[Matrix, ...]  # q, k, v, or all of them as one
    o: Matrix
    gate: Matrix
    up: Matrix
    down: Matrix
    vectors: Mapping[str, Part]  # role of a norm -> its weight


@dataclass(frozen=True, slots=True)
class Matrices:
    embedding: Matrix
    blocks: tuple[Block, ...]
    final_norm: Part
    head: Matrix


def name_of_head(source: Source, choice: Choice) -> str:
    """The output tensor that the head multiplies by."""
    roles = {one.role: one.name for one in source.tensors if one.part == "weight"}
    if not source.tied:
        return roles["head"]
    return f"{HEAD}.weight" if choice.apart else roles["embedding"]


def matrices(source: Source, model: Model, choice: Choice, *, joins: bool) -> Matrices:
    """`joins`: whether q, k and v may become one matrix."""
    outer = {one.role: one for one in source.tensors if one.block is None}
    table = outer["embedding"]
    vocab, hidden = table.shape
    head = Part(name_of_head(source, choice), 0, vocab)
    return Matrices(
        Matrix("model/embed_tokens", (Part(table.name, 0, vocab),), hidden,
               choice.kinds[choice.embedding]),
        tuple(_block(source, model, choice, at, joins) for at in range(len(model.layers))),
        Part(outer["final_norm"].name, 0, hidden),
        Matrix(HEAD, (head,), hidden, choice.kinds[choice.head]),
    )  # fmt: skip


def _block(source: Source, model: Model, choice: Choice, at: int, joins: bool) -> Block:
    inner = [one for one in source.tensors if one.block == at]
    weights = {one.role: one for one in inner if one.part == "weight"}
    biases = {one.role: one for one in inner if one.part == "bias"}

    def matrix(name: str, *cuts: tuple[str, int, int]) -> Matrix:
        """Of rows [start, stop) of roles."""
        first = weights[cuts[0][0]]
        return Matrix(
            f"model/layers.{at}/{name}",
            tuple(Part(weights[role].name, start, stop) for role, start, stop in cuts),
            first.shape[1],
            choice.kinds[module_of(first)],
            tuple(Part(biases[role].name, start, stop) for role, start, stop in cuts
                  if role in biases),
        )  # fmt: skip

    def whole(name: str, role: str) -> Matrix:
        return matrix(name, (role, 0, weights[role].shape[0]))

    ffn = weights["ffn_down"].shape[1]
    fused = "ffn_gate_up" in weights
    return Block(
        qkv=_qkv(model, choice, weights, joins, matrix),
        o=whole("attn/o_proj", "attn_o"),
        gate=matrix("mlp/gate_proj", ("ffn_gate_up" if fused else "ffn_gate", 0, ffn)),
        up=matrix("mlp/up_proj", *((("ffn_gate_up", ffn, 2 * ffn),) if fused
                                   else (("ffn_up", 0, ffn),))),
        down=whole("mlp/down_proj", "ffn_down"),
        vectors={role: Part(one.name, 0, one.shape[0]) for role, one in weights.items()
                 if len(one.shape) == 1},
    )  # fmt: skip


def _qkv(
    model: Model,
    choice: Choice,
    weights: Mapping[str, SourceTensor],
    joins: bool,
    matrix: Callable[..., Matrix],
) -> tuple[Matrix, ...]:
    """One matrix where the attention takes q, k and v as one and their kinds agree."""
    q, kv = model.heads * model.head_size, model.kv_heads * model.head_size
    if "attn_qkv" in weights:
        cuts = [("attn_qkv", 0, q), ("attn_qkv", q, q + kv), ("attn_qkv", q + kv, q + 2 * kv)]
    else:
        cuts = [("attn_q", 0, q), ("attn_k", 0, kv), ("attn_v", 0, kv)]
    kinds = {choice.kinds[module_of(weights[role])] for role, _, _ in cuts}
    if joins and len(kinds) == 1 and "attn_q_norm" not in weights:
        return (matrix("attn/qkv_proj", *cuts),)
    names = ("attn/q_proj", "attn/k_proj", "attn/v_proj")
    return tuple(matrix(name, cut) for name, cut in zip(names, cuts, strict=True))
