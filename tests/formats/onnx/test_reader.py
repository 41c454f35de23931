"""The reader on graphs made here, as other programs lay them out, and on damaged folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from qconvert.asked import Asked
from qconvert.checkpoint import Checkpoint, open_checkpoint
from qconvert.formats.onnx.reader import HEAD, open_reader
from qconvert.formats.refusal import Refused
from qconvert.formats.target import InputRounding, Request
from qconvert.pipeline import convert

Tensors = dict[str, NDArray[Any]]
MICROSOFT = "com.microsoft"
DECODER = {"filename": "model.onnx", "num_hidden_layers": 2}
SMALL = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 300, "head_dim": 16}


def halves(values: NDArray[np.float32], block: int, zeros: bool) -> tuple[Any, ...]:
    """(codes, scales, zero points or None, values) of a matrix in 4 bits, one number at a time."""
    rows, cols = values.shape
    groups = -(-cols // block)
    codes = np.zeros((rows, groups * block), np.uint8)
    scales = np.zeros((rows, groups), np.float32)
    points = np.full((rows, groups), 8, np.uint8)
    decoded = np.zeros((rows, cols), np.float32)
    for row in range(rows):
        for group in range(groups):
            where = slice(group * block, min((group + 1) * block, cols))
            part = values[row, where]
            scale = scales[row, group] = np.float32(np.abs(part).max() / 7)
            point = points[row, group] = 3 + (row + group) % 9 if zeros else 8
            found = np.clip(np.rint(part / scale) + point, 0, 15).astype(np.uint8)
            codes[row, where] = found
            decoded[row, where] = (found.astype(np.float32) - np.float32(point)) * scale
    packed = codes[:, 0::2] | codes[:, 1::2] << 4
    even = np.pad(points, ((0, 0), (0, groups % 2)))
    return packed, scales, (even[:, 0::2] | even[:, 1::2] << 4) if zeros else None, decoded


class Drawn:
    """A graph of a Llama or Qwen3 as onnxruntime-genai's builder lays it out."""

    def __init__(self, source: Checkpoint, *, float: bool, zeros: bool, block: int) -> None:
        self.source, self.float, self.zeros, self.block = source, float, zeros, block
        self.nodes: list[Any] = []
        self.stored: Tensors = {}
        self.decoded: Tensors = {}
        self.table = {one.name: one for one in source.tensors}

    def values(self, name: str) -> NDArray[np.float32]:
        one = self.table[name]
        return self.source.rows(one, 0, one.shape[0]).reshape(one.shape)

    def node(self, op: str, inputs: list[str], name: str, outputs: int = 1, **told: Any) -> str:
        domain = MICROSOFT if op in {"MatMulNBits", "GroupQueryAttention",
                                     "GatherBlockQuantized", "SkipSimplifiedLayerNormalization",
                                     } else ""  # fmt: skip
        made = [f"{name}/output_{at}" for at in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, made, name, domain=domain, **told))
        return made[0]

    def vector(self, name: str) -> str:
        self.stored[name] = self.values(name)
        self.decoded[name] = self.stored[name]
        return name

    def linear(self, x: str, name: str, *names: str) -> str:
        values = np.concatenate([self.values(f"{one}.weight") for one in names])
        stem = name.strip("/").replace("/", ".")
        if self.float:
            self.stored[f"{stem}.MatMul.weight"] = np.ascontiguousarray(values.T)
            decoded, out = values, self.node("MatMul", [x, f"{stem}.MatMul.weight"],
                                             f"{name}/MatMul")  # fmt: skip
        else:
            codes, scales, points, decoded = halves(values, self.block, self.zeros)
            (rows, cols), groups = values.shape, scales.shape[1]
            parts = {"qweight": codes.reshape(rows, groups, -1), "scales": scales.reshape(-1),
                     **({} if points is None else {"qzeros": points.reshape(-1)})}  # fmt: skip
            self.stored |= {f"{stem}.MatMulNBits.{key}": one for key, one in parts.items()}
            out = self.node(
                "MatMulNBits", [x, *(f"{stem}.MatMulNBits.{key}" for key in parts)],
                f"{name}/MatMulNBits", K=cols, N=rows, bits=4, block_size=self.block,
                accuracy_level=4,
            )  # fmt: skip
        at = 0
        for one in names:
            count = self.table[f"{one}.weight"].shape[0]
            self.decoded[f"{one}.weight"] = decoded[at : at + count]
            at += count
        biases = [f"{one}.bias" for one in names if f"{one}.bias" in self.table]
        if biases:
            self.stored[f"{stem}.Add.bias"] = np.concatenate([self.values(one) for one in biases])
            self.decoded |= {one: self.values(one) for one in biases}
            out = self.node("Add", [out, f"{stem}.Add.bias"], f"{name}/Add")
        return out

    def draw(self) -> None:
        hidden = self.embedding()
        total, delta = hidden, ""
        for at in range(2):
            prefix, root = f"model.layers.{at}", f"/model/layers.{at}"
            normed, total = self.norm(total, delta, f"{prefix}.input_layernorm", root)
            attended = self.attention(normed, at, prefix, root)
            delta = self.linear(attended, f"{root}/attn/o_proj", f"{prefix}.self_attn.o_proj")
            normed, total = self.norm(total, delta, f"{prefix}.post_attention_layernorm", root)
            up = self.linear(normed, f"{root}/mlp/up_proj", f"{prefix}.mlp.up_proj")
            gate = self.linear(normed, f"{root}/mlp/gate_proj", f"{prefix}.mlp.gate_proj")
            bent = self.node("Sigmoid", [gate], f"{root}/mlp/act_fn/Sigmoid")
            bent = self.node("Mul", [gate, bent], f"{root}/mlp/act_fn/Mul")
            both = self.node("Mul", [bent, up], f"{root}/mlp/Mul")
            delta = self.linear(both, f"{root}/mlp/down_proj", f"{prefix}.mlp.down_proj")
        normed, _ = self.norm(total, delta, "model.norm", "/model/layers.2")
        if self.source.tied:
            self.tied_head(normed)
        else:
            self.linear(normed, "/lm_head", "lm_head")
        self.nodes[-1].output[0] = "logits"

    def embedding(self) -> str:
        name = "model.embed_tokens.weight"
        if not self.source.tied or self.float:
            self.stored[name] = self.decoded[name] = self.values(name)
            return self.node("Gather", [name, "input_ids"], "/model/embed_tokens/Gather")
        codes, scales, _, self.decoded[name] = halves(self.values(name), self.block, False)
        self.stored["head.qweight"] = codes.reshape(len(codes), scales.shape[1], -1)
        self.stored["head.scales"] = scales
        self.stored["shape"] = np.array(codes.shape, np.int64)
        flat = self.node("Reshape", ["head.qweight", "shape"], "/model/embed_tokens/Reshape")
        return self.node("GatherBlockQuantized", [flat, "input_ids", "head.scales"],
                         "/model/embed_tokens/GatherBlockQuantized", bits=4, gather_axis=0,
                         quantize_axis=1, block_size=self.block)  # fmt: skip

    def tied_head(self, x: str) -> None:
        rows, cols = self.table["model.embed_tokens.weight"].shape
        if self.float:
            flipped = self.node("Transpose", ["model.embed_tokens.weight"], "/lm_head/Transpose",
                                perm=[1, 0])  # fmt: skip
            self.node("MatMul", [x, flipped], "/lm_head/MatMul")
        else:
            self.node("MatMulNBits", [x, "head.qweight", "head.scales"], "/lm_head/MatMulNBits",
                      K=cols, N=rows, bits=4, block_size=self.block)  # fmt: skip

    def norm(self, total: str, delta: str, name: str, root: str) -> tuple[str, str]:
        weight, node = self.vector(f"{name}.weight"), f"{root}/{name.rpartition('.')[2]}"
        if not delta:
            return self.node("SimplifiedLayerNormalization", [total, weight], node), total
        out = self.node("SkipSimplifiedLayerNormalization", [total, delta, weight], node, 4)
        return out, f"{node}/output_3"

    def attention(self, x: str, at: int, prefix: str, root: str) -> str:
        names = [f"{prefix}.self_attn.{letter}_proj" for letter in "qkv"]
        qkv = [self.linear(x, f"{root}/attn/qkv_proj", *names)]
        heads, kept = 4, 2
        if f"{prefix}.self_attn.q_norm.weight" in self.table:
            sizes = [self.table[f"{name}.weight"].shape[0] for name in names]
            self.stored["sizes"] = np.array(sizes, np.int64)
            split = f"{root}/attn/qkv_proj/Split"
            self.node("Split", [qkv[0], "sizes"], split, 3, axis=-1)
            qkv = [f"{split}/output_{one}" for one in range(3)]
            for one, letter in enumerate("qk"):
                node = f"{root}/attn/{letter}_norm"
                heads_apart = self.node("Reshape", [qkv[one], "sizes"], f"{node}/Reshape_1")
                weight = self.vector(f"{prefix}.self_attn.{letter}_norm.weight")
                normed = self.node("SimplifiedLayerNormalization", [heads_apart, weight], node)
                qkv[one] = self.node("Reshape", [normed, "sizes"], f"{node}/Reshape_2")
        past = [f"past_key_values.{at}.{part}" for part in ("key", "value")]
        return self.node("GroupQueryAttention", [*qkv, *[""] * (3 - len(qkv)), *past],
                         f"{root}/attn/GroupQueryAttention", 3, num_heads=heads,
                         kv_num_heads=kept)  # fmt: skip

    def save(self, folder: Path, producer: str = "onnxruntime-genai") -> Path:
        folder.mkdir()
        graph = helper.make_graph(
            self.nodes,
            "main_graph",
            [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "s"])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", "s", 300])],
            [numpy_helper.from_array(np.ascontiguousarray(one), name)
             for name, one in self.stored.items()],
        )  # fmt: skip
        model = helper.make_model(graph, producer_name=producer)
        onnx.save(model, folder / "model.onnx", save_as_external_data=True, size_threshold=0,
                  location="model.onnx.data")  # fmt: skip
        told = {"model": {"vocab_size": 300, "decoder": DECODER}}
        (folder / "genai_config.json").write_text(json.dumps(told), encoding="utf-8")
        return folder


@pytest.mark.parametrize(
    ("family", "options", "model"),
    [
        ("llama", {"float": True}, {}),
        ("llama", {"float": True}, {"tie_word_embeddings": True, "attention_bias": True}),
        ("llama", {"zeros": False, "block": 32}, {}),
        ("llama", {"zeros": True, "block": 32}, {"hidden_size": 80}),  # last blocks are shorter
        ("qwen2", {"zeros": True, "block": 16}, {}),
        ("qwen3", {"zeros": False, "block": 32}, {"tie_word_embeddings": True}),
    ],
)
def test_reads_what_the_builder_writes(
    family: str, options: dict[str, Any], model: dict[str, Any],
    tiny_model: Callable[..., Path], tmp_path: Path,
) -> None:  # fmt: skip
    own = {**SMALL, **model}
    if family == "qwen2":
        own.pop("head_dim")
    source = open_checkpoint(tiny_model(family, **own))
    drawn = Drawn(source, **{"float": False, "zeros": False, "block": 32, **options})
    drawn.draw()
    reader = open_reader(drawn.save(tmp_path / "x"))
    found = reader.weights(source)
    assert sorted(found) == sorted(one.name for one in source.tensors)
    for name, expected in drawn.decoded.items():
        np.testing.assert_array_equal(found[name], expected, err_msg=name)
    rounding = reader.input_rounding_of(source)
    linears = [one.name for one in source.tensors if one.role.startswith(("attn_", "ffn_"))
               and len(one.shape) == 2]  # fmt: skip
    if drawn.float:
        assert rounding == {}
    else:
        assert {rounding[name] for name in linears} == {InputRounding("int8", drawn.block)}
        assert (HEAD in rounding) == (not source.tied)  # the tied one has no level of its own


@pytest.fixture(scope="module")
def source(tiny_model: Callable[..., Path]) -> Checkpoint:
    return open_checkpoint(tiny_model("llama"))


@pytest.fixture(scope="module")
def good(source: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("onnx") / "good"
    convert(source.folder, "onnx", out=out, threads=1, asked=Asked(method="rtn"))
    return out


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "copy"))


def test_names_do_not_matter(good: Path, copy: Path, source: Checkpoint) -> None:
    """The gate is what is bent, whatever it is called: with every node's name changed, and the
    stored tensors' too, the same weights are found."""
    held = onnx.load(copy / "model.onnx", load_external_data=False)
    names = {one.name: f"t{at}" for at, one in enumerate(held.graph.initializer)}
    for one in held.graph.initializer:
        one.name = names[one.name]
    for at, node in enumerate(held.graph.node):
        node.name = f"n{at}"
        for place, name in enumerate(node.input):
            node.input[place] = names.get(name, name)
    onnx.save(held, copy / "model.onnx")
    expected, found = (open_reader(one).weights(source) for one in (good, copy))
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_wiring_matters(good: Path, copy: Path, source: Checkpoint) -> None:
    """Gate and up change places in the graph, not in the names: they change places here too."""
    held = onnx.load(copy / "model.onnx", load_external_data=False)
    nodes = {node.name: node for node in held.graph.node}
    gate, up = (nodes[f"/model/layers.0/mlp/{one}_proj/MatMulNBits"] for one in ("gate", "up"))
    gate.output[0], up.output[0] = up.output[0], gate.output[0]
    onnx.save(held, copy / "model.onnx")
    expected, found = (open_reader(one).weights(source) for one in (good, copy))
    name = "model.layers.0.mlp.{}_proj.weight"
    np.testing.assert_array_equal(found[name.format("gate")], expected[name.format("up")])
    np.testing.assert_array_equal(found[name.format("up")], expected[name.format("gate")])


def test_tensors_decode_to_what_weights_hold(good: Path, source: Checkpoint) -> None:
    reader = open_reader(good)
    assert {one.dtype for one in reader.tensors.values()} == {"int4", "F32"}
    name = "model.layers.1.attn.o_proj"
    assert reader.tensors[name].shape == (256, 256)
    assert reader.tensors[name].nbytes == 256 * 256 // 2 + 256 * 8 * 4
    stored = reader.weights(source)
    np.testing.assert_array_equal(
        reader.decode(name), stored["model.layers.1.self_attn.o_proj.weight"]
    )
    np.testing.assert_array_equal(
        reader.decode("model.layers.1.attn.qkv_proj")[256:384],
        stored["model.layers.1.self_attn.k_proj.weight"],
    )
    total = sum(one.nbytes for one in reader.tensors.values())
    assert total <= (good / "model.onnx.data").stat().st_size
    assert {one.name for one in reader.files} == {
        "model.onnx", "model.onnx.data", "genai_config.json"
    }  # fmt: skip


def change(copy: Path, edit: Callable[[Any], None]) -> None:
    held = onnx.load(copy / "model.onnx", load_external_data=False)
    edit(held)
    onnx.save(held, copy / "model.onnx")


def node(held: Any, name: str) -> Any:
    return next(one for one in held.graph.node if name in one.name)


def add_g_idx(held: Any) -> None:
    node(held, "o_proj").input.extend(["", "model.norm.weight"])


def quantize_later(held: Any) -> None:
    node(held, "down_proj").name += "_Q4"


def add_matrix(held: Any) -> None:
    made = helper.make_node("MatMul", ["input_ids", "extra"], ["y"], "/adapter/MatMul")
    held.graph.node.append(made)
    held.graph.initializer.append(numpy_helper.from_array(np.ones((4, 4), np.float32), "extra"))


def climb_out(held: Any) -> None:
    held.graph.initializer[-1].external_data[0].value = "../model.onnx.data"


def lose_node(held: Any) -> None:
    held.graph.node.remove(node(held, "mlp/gate_proj"))


def lengthen(held: Any) -> None:
    one = next(
        one for one in held.graph.initializer if one.name.endswith("o_proj.MatMulNBits.scales")
    )
    one.dims[1] += 1


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (add_g_idx, "has a g_idx"),
        (quantize_later, "was quantized by another program"),
        (add_matrix, "more than a decoder's matrices: adapter"),
        (climb_out, "lies outside the folder"),
        (lose_node, "is not gate and up"),
        (lengthen, "its shape takes"),
    ],
)
def test_a_graph_that_is_not_what_it_should_be_is_refused(
    edit: Callable[[Any], None], words: str, copy: Path
) -> None:
    change(copy, edit)
    with pytest.raises(Refused, match=words) as raised:
        open_reader(copy)
    assert "model.onnx" in str(raised.value)


def test_the_builder_may_quantize_by_itself(copy: Path, source: Checkpoint) -> None:
    def foreign(held: Any) -> None:
        quantize_later(held)
        held.producer_name = "onnxruntime-genai"

    change(copy, foreign)
    assert len(open_reader(copy).weights(source)) == len(source.tensors)


@pytest.mark.parametrize(
    ("name", "keep", "words"),
    [
        ("model.onnx", None, "no model.onnx in"),
        ("model.onnx.data", None, "model.onnx.data cannot be read"),
        ("genai_config.json", None, "no genai_config.json"),
        ("model.onnx", 0.9, "model.onnx is not an ONNX model"),
        ("model.onnx.data", 0.9, "model.onnx.data is cut off"),
        ("model.onnx.data", 0.0, "model.onnx.data is cut off"),
        ("genai_config.json", 0.5, "genai_config.json is not JSON"),
    ],
)
def test_missing_and_cut_files_are_named(
    name: str, keep: float | None, words: str, copy: Path
) -> None:
    path = copy / name
    held = path.read_bytes()
    path.unlink()
    if keep is not None:
        path.write_bytes(held[: int(len(held) * keep)])
    with pytest.raises(Refused, match=words):
        open_reader(copy)


def test_files_that_contradict_each_other_are_refused(copy: Path) -> None:
    path = copy / "genai_config.json"
    told = json.loads(path.read_text("utf-8"))
    told["model"]["decoder"]["num_hidden_layers"] = 3
    path.write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(Refused, match="of 512 tokens and 3 blocks, and"):
        open_reader(copy)


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"hidden_size": 128}, "o_proj.weight is"),
        ({"num_hidden_layers": 3}, "the folder has no model.layers.2"),
        ({"attention_bias": True}, "the folder has no model.layers.0.self_attn.q_proj.bias"),
    ],
)
def test_a_folder_of_another_model_is_refused(
    own: dict[str, Any], words: str, good: Path, tiny_model: Callable[..., Path]
) -> None:
    other = open_checkpoint(tiny_model("llama", **own))
    with pytest.raises(Refused, match=words):
        open_reader(good).weights(other)


def test_a_bias_that_the_model_has_not_is_refused(
    tiny_model: Callable[..., Path], tmp_path: Path, source: Checkpoint
) -> None:
    biased = tiny_model("llama", attention_bias=True)
    convert(biased, "onnx", out=tmp_path / "x", threads=1, asked=Asked(method="rtn"))
    with pytest.raises(Refused, match="adds a bias to"):
        open_reader(tmp_path / "x").weights(source)


@pytest.mark.parametrize("form", ["matmulnbits", "qdq"])
@pytest.mark.parametrize(
    "type", ["int4,lm_head=int8,embed_tokens=float", "int8,lm_head=float,embed_tokens=int4"]
)
def test_a_tied_model_with_two_matrices_has_both(
    type: str, form: str, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    tied = open_checkpoint(tiny_model("llama", tie_word_embeddings=True))
    asked = Request(own=(("onnx-form", form),))
    convert(tied.folder, "onnx", type=type, out=tmp_path / "x", threads=1, request=asked,
            asked=Asked(method="rtn"))  # fmt: skip
    found = open_reader(tmp_path / "x").weights(tied)
    table, head = found["model.embed_tokens.weight"], found[HEAD]
    whole = tied.rows(next(one for one in tied.tensors if one.role == "embedding"), 0, 512)
    errors = [float(np.linalg.norm(one - whole) / np.linalg.norm(whole)) for one in (table, head)]
    exact = errors.index(0)
    assert 1e-3 < errors[1 - exact] < 0.15
    assert exact == (0 if type.endswith("float") else 1)
