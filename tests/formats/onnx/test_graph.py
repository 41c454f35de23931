"""The graph itself: valid, complete, and nothing in it that was not asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import onnx
import pytest

from qconvert.formats.onnx.target import TARGET
from qconvert.formats.target import Request

QDQ = (("onnx-form", "qdq"),)
MODELS = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma3_text", "phi3")


@pytest.fixture
def drawn(headers: Callable[..., Any]) -> Callable[..., onnx.ModelProto]:
    def build(
        model_type: str = "llama", request: Request | None = None, **own: Any
    ) -> onnx.ModelProto:
        source = headers(model_type, **{"eos_token_id": 2, "max_position_embeddings": 64, **own})
        plan = TARGET.plan(source, request or Request())
        return onnx.load_from_string(plan.details["onnx"].files["model.onnx"])

    return build


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def told(model: onnx.ModelProto, operator: str, attribute: str) -> list[Any]:
    return [
        onnx.helper.get_attribute_value(one)
        for node in model.graph.node
        if node.op_type == operator
        for one in node.attribute
        if one.name == attribute
    ]


@pytest.mark.parametrize("model_type", MODELS)
def test_every_value_is_made_before_it_is_read(
    drawn: Callable[..., onnx.ModelProto], model_type: str
) -> None:
    for own in ((), QDQ):
        graph = drawn(model_type, Request(own=own)).graph
        known = {one.name for one in (*graph.input, *graph.initializer)} | {""}
        for node in graph.node:
            assert set(node.input) <= known, node.name
            assert not set(node.output) & known - {""}, node.name
            known |= set(node.output)
        assert {one.name for one in graph.output} <= known
        read = {name for node in graph.node for name in node.input}
        assert {one.name for one in graph.initializer} <= read
        assert len({node.name for node in graph.node}) == len(graph.node)


@pytest.mark.parametrize("model_type", MODELS)
def test_the_standard_form_is_standard(
    drawn: Callable[..., onnx.ModelProto], model_type: str
) -> None:
    """The checker knows the standard's operators, their types and attributes, and no others."""
    model = drawn(model_type, Request(own=QDQ))
    assert {one.domain for one in model.opset_import} == {""}
    for one in model.graph.initializer:  # the bytes are not there yet
        one.ClearField("data_location")
        del one.external_data[:]
        size = onnx.helper.tensor_dtype_to_np_dtype(one.data_type).itemsize
        count = 1
        for length in one.dims:
            count *= length
        four_bits = one.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)
        if not one.raw_data:
            one.raw_data = bytes(-(-count // 2) if four_bits else count * size)
    onnx.checker.check_model(model, full_check=True)


def test_inputs_and_outputs_are_those_of_the_builder(
    drawn: Callable[..., onnx.ModelProto],
) -> None:
    for own in ((), QDQ):
        graph = drawn(request=Request(own=own)).graph
        shapes = {
            one.name: [dim.dim_param or dim.dim_value for dim in one.type.tensor_type.shape.dim]
            for one in (*graph.input, *graph.output)
        }
        past = ["batch_size", 2, "past_sequence_length", 64]
        present = ["batch_size", 2, "total_sequence_length", 64]
        assert shapes == {
            "input_ids": ["batch_size", "sequence_length"],
            "attention_mask": ["batch_size", "total_sequence_length"],
            "logits": ["batch_size", "sequence_length", 512],
            **{f"past_key_values.{at}.{one}": past for at in (0, 1) for one in ("key", "value")},
            **{f"present.{at}.{one}": present for at in (0, 1) for one in ("key", "value")},
        }


def test_a_llama_in_int4(drawn: Callable[..., onnx.ModelProto]) -> None:
    model = drawn()
    assert operators(model) == {
        "GatherBlockQuantized": 1, "SimplifiedLayerNormalization": 1,
        "SkipSimplifiedLayerNormalization": 4, "MatMulNBits": 2 * 5 + 1,
        "GroupQueryAttention": 2, "Sigmoid": 2, "Mul": 4,
        "ReduceSum": 1, "Sub": 1, "Cast": 2, "Shape": 1, "Gather": 1,
    }  # fmt: skip
    assert set(told(model, "MatMulNBits", "accuracy_level")) == {4}
    assert {len(node.input) for node in model.graph.node if node.op_type == "MatMulNBits"} == {3}
    names = [node.name for node in model.graph.node if node.op_type == "MatMulNBits"]
    assert names[:3] == [f"/model/layers.0/{one}/MatMulNBits"
                         for one in ("attn/qkv_proj", "attn/o_proj", "mlp/gate_proj")]  # fmt: skip
    assert names[-1] == "/lm_head/MatMulNBits"


def test_no_group_index_is_ever_written(drawn: Callable[..., onnx.ModelProto]) -> None:
    asym = Request(symmetric=False)
    for node in drawn("qwen2", asym).graph.node:
        if node.op_type == "MatMulNBits" and len(node.input) > 4:
            assert node.input[3]
            assert node.input[4] == ""  # g_idx
            assert node.input[5].endswith(".bias")


def test_q_k_and_v_of_different_kinds_stay_apart(drawn: Callable[..., onnx.ModelProto]) -> None:
    model = drawn(request=Request(layers=(("1.self_attn.v_proj", "int8"),)))
    named = [node.name for node in model.graph.node if "attn/" in node.name]
    assert "/model/layers.0/attn/qkv_proj/MatMulNBits" in named
    assert {f"/model/layers.1/attn/{one}_proj/MatMulNBits" for one in "qkv"} <= set(named)


def test_a_tied_embedding_is_in_the_file_once(drawn: Callable[..., onnx.ModelProto]) -> None:
    """In the rank that each operator takes."""
    model = drawn(tie_word_embeddings=True)
    found = {one.name: one for one in model.graph.initializer}
    table = found["model.embed_tokens.GatherBlockQuantized.qweight"]
    head = found["lm_head.MatMulNBits.qweight"]
    assert (list(table.dims), list(head.dims)) == ([512, 128], [512, 8, 16])
    assert table.external_data == head.external_data
    kinds = {len(found[f"{one}.scales"].dims) for one in
             ("model.embed_tokens.GatherBlockQuantized", "lm_head.MatMulNBits")}  # fmt: skip
    assert kinds == {2}


@pytest.mark.parametrize(
    ("model_type", "config", "windows", "rotary"),
    [
        ("llama", {}, [-1, -1], [1, 1]),
        ("mistral", {"sliding_window": 16}, [16, 16], [1, 1]),
        ("mistral", {"sliding_window": None}, [-1, -1], [1, 1]),
        ("qwen2", {"sliding_window": 16, "max_window_layers": 1}, [-1, -1], [1, 1]),
        (
            "qwen2",
            {"sliding_window": 16, "max_window_layers": 1, "use_sliding_window": True},
            [-1, 16], [1, 1],
        ),
        ("smollm3", {"no_rope_layers": [0, 1]}, [-1, -1], [0, 1]),
        (
            "smollm3",
            {"no_rope_layers": [0, 1], "use_sliding_window": True, "sliding_window": 8},
            [8, -1], [0, 1],
        ),
        ("gemma3_text", {"sliding_window": 32}, [32, 32], [1, 1]),
        (
            "gemma3_text",
            {"sliding_window": 32, "layer_types": ["full_attention", "sliding_attention"]},
            [-1, 32], [1, 1],
        ),
        ("phi3", {"sliding_window": 32}, [32, 32], [1, 1]),
    ],
)  # fmt: skip
def test_windows_and_ropes_layer_by_layer(
    drawn: Callable[..., onnx.ModelProto],
    model_type: str,
    config: dict[str, Any],
    windows: list[int],
    rotary: list[int],
) -> None:
    model = drawn(model_type, **config)
    assert told(model, "GroupQueryAttention", "local_window_size") == windows
    assert told(model, "GroupQueryAttention", "do_rotary") == rotary


def test_the_same_request_gives_the_same_bytes(headers: Callable[..., Any]) -> None:
    made = [
        TARGET.plan(headers("gemma3_text", eos_token_id=1), Request()).details["onnx"].files
        for _ in range(2)
    ]
    assert made[0] == made[1]
