"""From a model to its graph: what is computed, in whatever operators the dialect has.

Inputs, outputs and node names are those of onnxruntime-genai's own builder, so that its runtime
takes the file: `input_ids`, `attention_mask`, `past_key_values.{i}.key` and so on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from qconvert.formats.onnx.architectures import GELU, GELU_TANH, SILU
from qconvert.formats.onnx.dialect import Dialect
from qconvert.formats.onnx.drawing import Drawing, external, offsets
from qconvert.formats.onnx.matrices import Block, Matrices
from qconvert.formats.onnx.model import Layer, Model

PRODUCER = "qconvert"


def draw(model: Model, matrices: Matrices, dialect: Dialect) -> Drawing:
    """All nodes, and where the data file keeps what they read."""
    drawing = Drawing()
    dialect.begin(drawing, model)
    hidden = dialect.embedding(drawing, matrices.embedding)
    if model.embedding_scale is not None:
        factor = drawing.constant(np.array(model.embedding_scale, np.float32))
        hidden = drawing.node("Mul", [hidden, factor], "/model/embed_tokens/Mul")
    delta = ""
    for at, (layer, block) in enumerate(zip(model.layers, matrices.blocks, strict=True)):
        hidden, delta = _block(drawing, model, dialect, at, layer, block, hidden, delta)
    name = f"/model/layers.{len(model.layers)}/final_norm_layernorm"
    normed, _ = dialect.add_norm(drawing, model, hidden, delta, matrices.final_norm, name)
    _head(drawing, model, dialect, matrices, normed)
    return drawing


def _block(
    drawing: Drawing,
    model: Model,
    dialect: Dialect,
    at: int,
    layer: Layer,
    block: Block,
    hidden: str,
    delta: str,
) -> tuple[str, str]:
    """(residual stream, what is still to be added to it). `delta`: of the block before."""
    root = f"/model/layers.{at}"
    first, name = block.vectors["attn_norm"], f"{root}/input_layernorm"
    if delta:
        normed, hidden = dialect.add_norm(drawing, model, hidden, delta, first, name)
    else:
        normed = dialect.norm(drawing, model, hidden, first, name)
    qkv = [dialect.linear(drawing, normed, one) for one in block.qkv]
    qkv = _head_norms(drawing, model, dialect, root, block, qkv)
    attended = dialect.attention(drawing, model, at, layer, qkv)
    delta = dialect.linear(drawing, attended, block.o)
    delta = _post_norm(drawing, model, dialect, block, "attn_post_norm", delta,
                       f"{root}/post_attention_layernorm")  # fmt: skip
    name = f"{root}/{'pre_feedforward' if 'attn_post_norm' in block.vectors else 'post_attention'}"
    weight = block.vectors["ffn_norm"]
    normed, hidden = dialect.add_norm(drawing, model, hidden, delta, weight, f"{name}_layernorm")
    delta = _mlp(drawing, model, dialect, root, block, normed)
    delta = _post_norm(drawing, model, dialect, block, "ffn_post_norm", delta,
                       f"{root}/post_feedforward_layernorm")  # fmt: skip
    return hidden, delta


def _post_norm(
    drawing: Drawing, model: Model, dialect: Dialect, block: Block, role: str, x: str, name: str
) -> str:
    """Gemma's norm of what a part of a block has made."""
    weight = block.vectors.get(role)
    return x if weight is None else dialect.norm(drawing, model, x, weight, name)


def _head_norms(
    drawing: Drawing, model: Model, dialect: Dialect, root: str, block: Block, qkv: Sequence[str]
) -> list[str]:
    """Queries and keys normed head by head, where the model does so."""
    if "attn_q_norm" not in block.vectors:
        return list(qkv)
    found = []
    for value, letter in zip(qkv[:2], "qk", strict=True):
        name = f"{root}/attn/{letter}_norm"
        heads = drawing.constant([0, 0, -1, model.head_size])
        split = drawing.node("Reshape", [value, heads], f"{name}/Reshape_1")
        weight = block.vectors[f"attn_{letter}_norm"]
        normed = dialect.norm(drawing, model, split, weight, name)
        joined = drawing.constant([0, 0, -1])
        found.append(drawing.node("Reshape", [normed, joined], f"{name}/Reshape_2"))
    return [*found, *qkv[2:]]


def _mlp(drawing: Drawing, model: Model, dialect: Dialect, root: str, block: Block, x: str) -> str:
    gate = dialect.linear(drawing, x, block.gate)
    up = dialect.linear(drawing, x, block.up)
    gated = _activation(drawing, model.activation, gate, f"{root}/mlp")
    product = drawing.node("Mul", [gated, up], f"{root}/mlp/Mul")
    return dialect.linear(drawing, product, block.down)


def _activation(drawing: Drawing, activation: str, x: str, root: str) -> str:
    if activation == SILU:
        bent = drawing.node("Sigmoid", [x], f"{root}/act_fn/Sigmoid")
        return drawing.node("Mul", [x, bent], f"{root}/act_fn/Mul")
    form = {GELU: "none", GELU_TANH: "tanh"}[activation]
    return drawing.node("Gelu", [x], f"{root}/act_fn/Gelu", approximate=form)


def _head(drawing: Drawing, model: Model, dialect: Dialect, matrices: Matrices, x: str) -> None:
    if model.soft_cap is None:
        dialect.linear(drawing, x, matrices.head, "logits")
        return
    cap = drawing.constant(np.array(model.soft_cap, np.float32))
    value = dialect.linear(drawing, x, matrices.head)
    value = drawing.node("Div", [value, cap], "/lm_head/softcap/Div")
    value = drawing.node("Tanh", [value], "/lm_head/softcap/Tanh")
    drawing.node("Mul", [value, cap], "/lm_head/softcap/Mul", outputs=["logits"])


def model_bytes(model: Model, drawing: Drawing, dialect: Dialect) -> bytes:
    """model.onnx: the graph, and where in the data file its initializers are."""
    places, _ = offsets(drawing.regions)
    graph = helper.make_graph(
        drawing.nodes,
        "main_graph",
        _inputs(model),
        _outputs(model),
        [
            *drawing.constants.values(),
            *(external(one, places[one.region], drawing.regions[one.region])
              for one in drawing.initializers),
        ],
    )  # fmt: skip
    made: ModelProto = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(*one) for one in dialect.opsets.items()],
        ir_version=dialect.ir_version,
        producer_name=PRODUCER,
    )
    serialized: bytes = made.SerializeToString(deterministic=True)
    return serialized


def _inputs(model: Model) -> list[ValueInfoProto]:
    return [
        _value("input_ids", TensorProto.INT64, "batch_size", "sequence_length"),
        _value("attention_mask", TensorProto.INT64, "batch_size", "total_sequence_length"),
        *_caches(model, "past_key_values", "past_sequence_length"),
    ]


def _outputs(model: Model) -> list[ValueInfoProto]:
    return [
        _value("logits", TensorProto.FLOAT, "batch_size", "sequence_length", model.vocab),
        *_caches(model, "present", "total_sequence_length"),
    ]


def _caches(model: Model, name: str, length: str) -> list[ValueInfoProto]:
    shape = ("batch_size", model.kv_heads, length, model.head_size)
    return [
        _value(f"{name}.{at}.{part}", TensorProto.FLOAT, *shape)
        for at in range(len(model.layers))
        for part in ("key", "value")
    ]


def _value(name: str, dtype: int, *shape: int | str) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)
