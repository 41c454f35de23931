"""Which linears a serving program joins, and what of them one rank of tensor parallelism holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qconvert.formats.source import Source, SourceTensor

LINEARS = (
    "attn_q", "attn_k", "attn_v", "attn_qkv", "attn_o",
    "ffn_gate", "ffn_up", "ffn_gate_up", "ffn_down",
)  # fmt: skip
"""Roles of the matrices that are quantized. Embedding, head and routers stay float."""

Fusing = tuple[tuple[str, ...], ...]
"""Roles that become one linear in the program's memory, in its order."""

QKV_AND_GATE_UP: Fusing = (("attn_q", "attn_k", "attn_v"), ("ffn_gate", "ffn_up"))
KV_AND_GATE_UP: Fusing = (("attn_k", "attn_v"), ("ffn_gate", "ffn_up"))

KEYS_AND_VALUES = ("attn_k", "attn_v", "attn_qkv")

STORED_JOINED = ("attn_qkv", "ffn_gate_up")
"""Roles that are several linears in one matrix of the checkpoint."""

ROW_PARALLEL = ("attn_o", "ffn_down")
"""Cut along their inputs; all others along their outputs."""


@dataclass(frozen=True, slots=True)
class Joined:
    """Linears of a block that a program holds as one, or one by itself."""

    members: tuple[SourceTensor, ...]
    biased: bool = False  # whether one of them has a bias

    @property
    def name(self) -> str:
        """ "model.layers.0.self_attn.q_proj, k_proj and v_proj" """
        first, *others = (module_of(one) for one in self.members)
        names = [first, *(name.rpartition(".")[2] for name in others)]
        return " and ".join([", ".join(names[:-1]), names[-1]] if others else names)


def module_of(tensor: SourceTensor) -> str:
    """The module that a weight or bias belongs to: "model.layers.0.self_attn.q_proj"."""
    return tensor.name.rpartition(".")[0]


def linears_of(source: Source) -> tuple[SourceTensor, ...]:
    """The weights that can be quantized, in the order of the source."""
    return tuple(
        one
        for one in source.tensors
        if one.block is not None and one.part == "weight" and one.role in LINEARS
    )


def joined(source: Source, linears: Iterable[SourceTensor], fusing: Fusing) -> list[Joined]:
    """`linears` as a program holds them, in the order of their first members."""
    biased = {module_of(one) for one in source.tensors if one.part == "bias"}
    sets: dict[tuple[int | None, str], list[SourceTensor]] = {}
    for one in linears:
        roles = next((roles for roles in fusing if one.role in roles), (one.role,))
        sets.setdefault((one.block, roles[0]), []).append(one)
    return [
        Joined(tuple(members), any(module_of(one) in biased for one in members))
        for members in sets.values()
    ]


@dataclass(frozen=True, slots=True)
class Shard:
    """What one rank holds of a `Joined`."""

    of: Joined
    cols: int  # K
    parts: tuple[int, ...]  # rows of each part, N
    cut: str  # "" for the whole, "rows" or "columns"
    heads: int = 0  # of keys and values, where several ranks hold the same ones

    @property
    def rows(self) -> int:
        return sum(self.parts)

    @property
    def stored_joined(self) -> bool:
        """Whether the checkpoint itself holds several in one: Phi-3."""
        return any(one.role in STORED_JOINED for one in self.of.members)

    @property
    def cached(self) -> bool:
        """Whether keys and values come from it."""
        return any(one.role in KEYS_AND_VALUES for one in self.of.members)


@dataclass(frozen=True, slots=True)
class Uneven:
    """A linear that does not come apart into equal shards."""

    of: Joined
    what: str  # "576 inputs", "9 heads"


def shards(source: Source, sets: Sequence[Joined], tp: int) -> Iterator[Shard | Uneven]:
    """What each rank of `tp` holds of each of `sets`; all ranks hold the same shapes."""
    heads = _heads(source.config)
    for one in sets:
        yield _shard(one, tp, heads)


@dataclass(frozen=True, slots=True)
class _Heads:
    query: int
    kv: int
    size: int


def _heads(config: Mapping[str, Any]) -> _Heads:
    query = int(config["num_attention_heads"])
    size = config.get("head_dim") or int(config["hidden_size"]) // query
    return _Heads(query, int(config.get("num_key_value_heads") or query), int(size))


def _shard(one: Joined, tp: int, heads: _Heads) -> Shard | Uneven:
    cols = one.members[0].shape[1]
    roles = {member.role for member in one.members}
    if roles & set(ROW_PARALLEL):
        if cols % tp:
            return Uneven(one, f"{cols} inputs")
        cut = "columns" if tp > 1 else ""
        return Shard(one, cols // tp, tuple(member.shape[0] for member in one.members), cut)
    parts: list[int] = []
    for member in one.members:
        found = _rows(member, tp, heads)
        if isinstance(found, str):
            return Uneven(one, found)
        parts += found
    repeated = heads.kv < tp and bool(roles & set(KEYS_AND_VALUES))
    return Shard(one, cols, tuple(parts), "rows" if tp > 1 else "", heads.kv if repeated else 0)


def _rows(tensor: SourceTensor, tp: int, heads: _Heads) -> list[int] | str:
    """Rows of the parts of a linear that is cut along its outputs; why not, where it is not."""
    query, kv = heads.query * heads.size, heads.kv * heads.size
    attention = {
        "attn_q": [query], "attn_k": [kv], "attn_v": [kv], "attn_qkv": [query, kv, kv],
    }.get(tensor.role)  # fmt: skip
    if attention is None:
        count = 2 if tensor.role == "ffn_gate_up" else 1
        part = tensor.shape[0] // count
        return f"{part} outputs" if part % tp else [part // tp] * count
    if query in attention and heads.query % tp:
        return f"{heads.query} heads"
    if kv in attention and heads.kv % tp and tp % heads.kv:
        return f"{heads.kv} heads of keys and values"
    return [max(rows // tp, heads.size) for rows in attention]  # few heads of k and v: repeated
