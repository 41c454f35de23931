# mypy: disable-error-code="misc,no-any-return"
# (TVM has no types: its modules are bases of Any.)
"""A causal language model from an MLC folder's facts, compiled by TVM for this processor.

Parameters have MLC's names. Arithmetic is float32. Functions of one parameter list:
`prefill` (any tokens -> hidden states), `head` (hidden states -> logits), `decode` (one token ->
logits), `blocks` (any tokens -> what each block gives to the next).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm  # type: ignore[import-not-found,unused-ignore]
from tvm import relax
from tvm.relax.frontend import nn  # type: ignore[import-not-found,unused-ignore]
from tvm.relax.frontend.nn import op  # type: ignore[import-not-found,unused-ignore]

from qconvert.runtimes.tvm.attention import attention
from qconvert.runtimes.tvm.folder import Facts
from qconvert.runtimes.tvm.layers import Matrix, Norm


class Attention(nn.Module):
    def __init__(self, facts: Facts, exact: bool, room: int) -> None:
        self.heads, self.kv, self.dim = facts.heads, facts.kv_heads, facts.head_dim
        self.room, self.head_norms = room, facts.head_norms
        self.joined = facts.qkv
        wide = (self.heads + 2 * self.kv) * self.dim
        joined = Matrix(wide, facts.hidden, facts.scheme, exact=exact, bias=facts.qkv_bias)
        setattr(self, facts.qkv, joined)
        if facts.head_norms:
            self.q_norm = Norm(self.dim, facts.eps, facts.scheme.dtype)
            self.k_norm = Norm(self.dim, facts.eps, facts.scheme.dtype)
        self.o_proj = Matrix(
            facts.hidden, self.heads * self.dim, facts.scheme, exact=exact, bias=facts.out_bias
        )

    def forward(self, x: Any, state: dict[str, Any], keys: Any, values: Any) -> Any:
        """[tokens, hidden], and the caches with these tokens in them."""
        qkv = getattr(self, self.joined)(x)
        if self.head_norms:
            qkv = self._normed(qkv)
        out = nn.Tensor.placeholder([x.shape[0], self.heads * self.dim], "float32")
        found, keys, values = op.tensor_ir_inplace_op(
            attention(self.heads, self.kv, self.dim, self.room),
            "attention",
            [qkv, state["cos"], state["sin"], state["past"], keys, values],
            [-1, 4, 5],
            [out, keys, values],
        )
        return self.o_proj(found), keys, values

    def _normed(self, qkv: Any) -> Any:
        tokens, last = qkv.shape[0], self.heads + self.kv
        cut = op.reshape(qkv, (tokens, last + self.kv, self.dim))
        q, k, v = op.split(cut, [self.heads, last], axis=1)
        return op.reshape(
            op.concat([self.q_norm(q), self.k_norm(k), v], dim=1),
            (tokens, (last + self.kv) * self.dim),
        )


class FeedForward(nn.Module):
    def __init__(self, facts: Facts, exact: bool) -> None:
        self.gate_up_proj = Matrix(2 * facts.inner, facts.hidden, facts.scheme, exact=exact)
        self.down_proj = Matrix(facts.hidden, facts.inner, facts.scheme, exact=exact)
        self.gate = GATES[facts.gate]

    def forward(self, x: Any) -> Any:
        gate, up = op.split(self.gate_up_proj(x), 2, axis=-1)
        return self.down_proj(self.gate(gate) * up)


def _gelu_tanh(x: Any) -> Any:
    return op.gelu(x, approximate="tanh")


GATES = {"silu": op.silu, "gelu_tanh": _gelu_tanh}


class Layer(nn.Module):
    def __init__(self, facts: Facts, exact: bool, room: int) -> None:
        dtype = facts.scheme.dtype
        self.self_attn = Attention(facts, exact, room)
        self.mlp = FeedForward(facts, exact)
        self.input_layernorm = Norm(facts.hidden, facts.eps, dtype)
        self.post_attention_layernorm = Norm(facts.hidden, facts.eps, dtype)

    def forward(self, x: Any, state: dict[str, Any], keys: Any, values: Any) -> Any:
        out, keys, values = self.self_attn(self.input_layernorm(x), state, keys, values)
        x = x + out
        return x + self.mlp(self.post_attention_layernorm(x)), keys, values


class Body(nn.Module):
    def __init__(self, facts: Facts, exact: bool, room: int) -> None:
        plain = facts.scheme.plain_ends
        self.embed_tokens = Matrix(
            facts.vocab, facts.hidden, facts.scheme, exact=exact, plain=plain
        )
        self.layers = nn.ModuleList([Layer(facts, exact, room) for _ in range(facts.layers)])
        self.norm = Norm(facts.hidden, facts.eps, facts.scheme.dtype)


class CausalLM(nn.Module):
    """The whole model; its parameters are those of `folder.stored`, matrices as [out, in]."""

    def __init__(self, facts: Facts, exact: bool, room: int) -> None:
        self.model = Body(facts, exact, room)
        self.tied, self.scale = facts.tied, facts.embedding_scale
        if not self.tied:
            plain = facts.scheme.plain_ends
            self.lm_head = Matrix(facts.vocab, facts.hidden, facts.scheme, exact=exact, plain=plain)

    def prefill(self, ids: Any, cos: Any, sin: Any, past: Any, keys: Any, values: Any) -> Any:
        streams, keys, values = self.blocks(ids, cos, sin, past, keys, values)
        return self.model.norm(streams[-1]), keys, values

    def blocks(self, ids: Any, cos: Any, sin: Any, past: Any, keys: Any, values: Any) -> Any:
        x = self.model.embed_tokens.look_up(ids)
        if self.scale != 1.0:
            x = x * self.scale
        state, streams, kept = {"cos": cos, "sin": sin, "past": past}, [], []
        for number, layer in enumerate(self.model.layers):
            x, *caches = layer(x, state, keys[number], values[number])
            streams.append(x)
            kept.append(caches)
        return streams, [one for one, _ in kept], [one for _, one in kept]

    def head(self, hidden: Any) -> Any:
        return (self.model.embed_tokens if self.tied else self.lm_head)(hidden)

    def decode(self, ids: Any, cos: Any, sin: Any, past: Any, keys: Any, values: Any) -> Any:
        hidden, keys, values = self.prefill(ids, cos, sin, past, keys, values)
        return self.head(hidden), keys, values


def build(
    facts: Facts, *, exact: bool, room: int, wanted: Sequence[str] = ("prefill", "decode", "head")
) -> tuple[Any, list[str]]:
    """A compiled executable of the functions `wanted`, for contexts of up to `room` tokens (a
    multiple of 16), and the names of the parameters in its order."""
    kv, dim = facts.kv_heads, facts.head_dim

    def spec(shape: list[Any], dtype: str = "float32") -> Any:
        return nn.spec.Tensor(shape, dtype)

    def step(tokens: Any) -> dict[str, Any]:
        return {
            "ids": spec([tokens], "int32"),
            "cos": spec([room, dim // 2]),
            "sin": spec([room, dim // 2]),
            "past": spec([1], "int32"),
            "keys": [spec([kv, dim, room])] * facts.layers,
            "values": [spec([kv, room, dim])] * facts.layers,
            "$": PACKED,
        }

    functions = {
        "prefill": step("tokens"),
        "blocks": step("tokens"),
        "decode": step(1),
        "head": {"hidden": spec(["tokens", facts.hidden]), "$": PACKED},
    }
    spec_of = {name: functions[name] for name in wanted}
    module, parameters = CausalLM(facts, exact, room).export_tvm(spec=spec_of)
    target = tvm.target.Target.from_device("cpu")
    with target:
        return relax.build(module, target=target), [name for name, _ in parameters]


PACKED = {"param_mode": "packed", "effect_mode": "none"}
