"""Folders for ONNX Runtime: initializers found in the graph, their bytes changed in the data file.

MatMulNBits and GatherBlockQuantized as their schemas in onnxruntime say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from planting import huggingface
from planting.bits import pack, unpack
from planting.files import Files, Inapplicable
from planting.output import Culprits, Facts, Fields, Vocabulary
from planting.quantized import symmetric

MODEL, GENAI = "model.onnx", "genai_config.json"
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
PLAIN_THETA = 10000.0
MLP = ("gate_proj", "up_proj", "down_proj")


class OnnxFolder:
    format = "onnx"
    rope_pairs = False

    def __init__(self, files: Files, facts: Facts) -> None:
        self.files, self.facts = files, facts
        self.model = onnx.load(files.read(MODEL), load_external_data=False)
        self.held = {one.name: one for one in self.model.graph.initializer}
        self.bits = next(
            (_attribute(node, "bits") for node in self.model.graph.node
             if node.op_type == "MatMulNBits"), 16,
        )  # fmt: skip

    def _place(self, name: str) -> tuple[str, int, int]:
        if name not in self.held:
            raise Inapplicable(f"the graph holds no {name}")
        told = {one.key: one.value for one in self.held[name].external_data}
        if "location" not in told:
            raise Inapplicable(f"{name} lies in the graph itself")
        return told["location"], int(told["offset"]), int(told["length"])

    def array(self, name: str) -> NDArray[Any]:
        file, offset, length = self._place(name)
        with self.files.read(file).open("rb") as stream:
            stream.seek(offset)
            data = stream.read(length)
        one = self.held[name]
        dtype = helper.tensor_dtype_to_np_dtype(one.data_type)
        return np.frombuffer(data, dtype).reshape(tuple(one.dims)).copy()

    def store(self, name: str, array: NDArray[Any]) -> None:
        file, offset, length = self._place(name)
        data = np.ascontiguousarray(array).tobytes()
        if len(data) != length:
            raise ValueError(f"{name} has {length} bytes, not {len(data)}")
        with self.files.own(file).open("r+b") as stream:
            stream.seek(offset)
            stream.write(data)

    def save(self) -> None:
        """The graph, changed; the data file stays."""
        self.files.write(MODEL, self.model.SerializeToString())

    def _stem(self, weight: str) -> tuple[str, slice]:
        """The initializers' stem, and which of its rows are the weight's."""
        name, _, _ = weight.rpartition(".")
        if name == EMBEDDING:
            return f"{EMBEDDING}.GatherBlockQuantized", slice(None)
        parts = name.split(".")
        if name == HEAD or parts[-1] in MLP:
            return f"{name}.MatMulNBits", slice(None)
        if parts[-1].endswith("_proj"):
            own = f"model.layers.{parts[2]}.attn.{parts[-1]}.MatMulNBits"
            joined = f"model.layers.{parts[2]}.attn.qkv_proj.MatMulNBits"
            fused = f"{joined}.qweight" in self.held and f"{own}.qweight" not in self.held
            return (joined, self._rows(parts[-1])) if fused else (own, slice(None))
        raise Inapplicable(f"{weight} is no linear")

    def _rows(self, part: str) -> slice:
        q, kv = (n * self.facts.head_dim for n in (self.facts.heads, self.facts.kv_heads))
        return {"q_proj": slice(0, q), "k_proj": slice(q, q + kv),
                "v_proj": slice(q + kv, q + 2 * kv)}[part]  # fmt: skip

    def get(self, weight: str) -> Fields:
        if weight in self.held:
            return {"value": self.array(weight)}
        stem, rows = self._stem(weight)
        if weight.endswith(".bias"):
            return {"value": self.array(f"{stem}.bias")[rows]}
        if f"{stem}.qweight" not in self.held:
            raise Inapplicable(f"{stem} is not quantized")
        whole = self.array(f"{stem}.qweight")
        packed, scale = whole.reshape(len(whole), -1)[rows], self.array(f"{stem}.scales")[rows]
        found: Fields = {
            "code": unpack(packed, self.bits, packed.shape[1] * 8 // self.bits), "scale": scale,
        }  # fmt: skip
        if f"{stem}.qzeros" in self.held:
            found["zero"] = unpack(self.array(f"{stem}.qzeros")[rows], self.bits, scale.shape[1])
        return found

    def put(self, weight: str, fields: Fields) -> None:
        if weight in self.held:
            self.store(weight, fields["value"])
            return
        stem, rows = self._stem(weight)
        if "value" in fields:
            self._part(f"{stem}.bias", rows, fields["value"])
            return
        whole = self.array(f"{stem}.qweight")
        flat = whole.reshape(len(whole), -1)
        flat[rows] = pack(fields["code"], self.bits, flat[rows])
        self.store(f"{stem}.qweight", flat)
        self._part(f"{stem}.scales", rows, fields["scale"])
        if "zero" in fields:
            like = np.ascontiguousarray(self.array(f"{stem}.qzeros")[rows])
            self._part(f"{stem}.qzeros", rows, pack(fields["zero"], self.bits, like))

    def _part(self, name: str, rows: slice, array: NDArray[Any]) -> None:
        whole = self.array(name)
        whole[rows] = array
        self.store(name, whole)

    def attribute(self, op: str, name: str, value: Any, only: str = "") -> Culprits:
        """Set an attribute of every node of a kind, or of those with `only` in their names."""
        changed = 0
        for node in self.model.graph.node:
            if node.op_type.endswith(op) and only in node.name and _has(node, name):
                changed += _attribute(node, name) != value
                kept = [one for one in node.attribute if one.name != name]
                del node.attribute[:]
                node.attribute.extend([*kept, helper.make_attribute(name, value)])
        if not changed:
            raise Inapplicable(f"no {op} has another {name}")
        self.save()
        return (name, op, MODEL)

    def setting(self, key: str, value: Any) -> Culprits:
        if key in ("rope_theta", "rope_scaling"):
            theta = value if key == "rope_theta" else self.facts.rope["rope_theta"]
            if key == "rope_scaling" and self.facts.rope.get("rope_type") == "default":
                raise Inapplicable("positions are not scaled")
            self._positions(float(theta))
            return (key, "rope_parameters", "cos_cache", "sin_cache")
        if key == "rms_norm_eps":
            return (key, *self.attribute("LayerNormalization", "epsilon", float(value)))
        if key == "sliding_window":
            return (key, *self.attribute("GroupQueryAttention", "local_window_size", value or -1))
        raise Inapplicable(f"the graph does not hold {key} apart from its shapes")

    def _positions(self, theta: float) -> None:
        """Both tables again, of a plain rotation with this base."""
        names = [name for name in ("cos_cache", "sin_cache") if name in self.held]
        if len(names) != 2:
            raise Inapplicable("the graph has other tables of positions")
        count, half = self.array("cos_cache").shape
        angles = np.outer(np.arange(count), theta ** -(np.arange(half) / half))
        self.store("cos_cache", np.cos(angles).astype(self.array("cos_cache").dtype))
        self.store("sin_cache", np.sin(angles).astype(self.array("sin_cache").dtype))

    def drop(self, weight: str) -> Culprits:
        """Of a bias: the input of its node is left empty."""
        stem, _ = self._stem(weight)
        name = f"{stem}.bias"
        for node in self.model.graph.node:
            if name in node.input:
                del node.input[list(node.input).index(name)]
                self.model.graph.initializer.remove(self.held.pop(name))
                self.save()
                parts = ("q_proj", "k_proj", "v_proj")
                joined = [weight.replace("q_proj", part) for part in parts]
                return (weight, *joined, name)
        raise Inapplicable(f"no node reads {name}")

    def add_head(self, values: NDArray[np.float32]) -> Culprits:
        stem = f"{HEAD}.MatMulNBits"
        if f"{stem}.qzeros" in self.held or self.bits != 4:
            raise Inapplicable("a head is made in symmetric 4 bits alone")
        group = values.shape[1] // self.array(f"{stem}.scales").shape[1]
        code, scale = symmetric(values, group, 7)
        packed = pack(code + 8, 4, np.zeros((len(values), values.shape[1] // 2), np.uint8))
        for name, array in ((f"{stem}.qweight", packed), (f"{stem}.scales", scale)):
            self._append(name, array.astype(self.array(name).dtype))
        self.save()
        return ("lm_head.weight", "model.embed_tokens.weight", "tie_word_embeddings")

    def _append(self, name: str, array: NDArray[Any]) -> None:
        file, _, _ = self._place(name)
        path = self.files.own(file)
        at = -(-path.stat().st_size // 4096) * 4096
        with path.open("r+b") as stream:
            stream.seek(at)
            stream.write(np.ascontiguousarray(array).tobytes())
        for one in self.held[name].external_data:
            told = {"offset": str(at), "length": str(array.nbytes)}
            one.value = told.get(one.key, one.value)

    def token(self, key: str, value: Any) -> Culprits:
        if not key.startswith("add_"):
            self.files.edit_json(GENAI, lambda content: _known(content["model"], key, value))
            return (key, GENAI, "tokenizer")
        return huggingface.edit_token(self.files, key, value)

    def tokenizer(self, change: Callable[[Vocabulary], None]) -> Culprits:
        return huggingface.edit_tokenizer(self.files, change)

    def template(self, text: str | None) -> Culprits:
        return huggingface.edit_template(self.files, text)

    def generation(self, key: str, value: Any) -> Culprits:
        usual = {"temperature": 1.0, "top_p": 1.0, "do_sample": False, "top_k": 50}
        now = usual.get(key) if value is None else value
        self.files.edit_json(GENAI, lambda content: _known(content["search"], key, now))
        if self.files.has(huggingface.GENERATION):
            huggingface.edit_generation(self.files, key, value)
        return (key, "generation", GENAI, huggingface.GENERATION)

    def data_files(self) -> list[str]:
        return sorted({self._place(name)[0] for name in self.held if self.held[name].external_data})

    def span(self, weight: str) -> tuple[str, int, int]:
        stem, rows = self._stem(weight)
        file, offset, length = self._place(f"{stem}.qweight")
        count = self.held[f"{stem}.qweight"].dims[0]
        first, last, _ = rows.indices(count)
        each = length // count
        return file, offset + first * each, (last - first) * each

    def finish(self) -> None:
        """The folder holds no checksums."""


def _has(node: Any, name: str) -> bool:
    return any(one.name == name for one in node.attribute)


def _attribute(node: Any, name: str) -> Any:
    return next(helper.get_attribute_value(one) for one in node.attribute if one.name == name)


def _known(content: Any, key: str, value: Any) -> None:
    if key not in content:
        raise Inapplicable(f"{GENAI} does not say {key}")
    content[key] = value
