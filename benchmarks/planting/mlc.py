"""Folders for MLC: records of tensor-cache.json, their bytes changed in the shards."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from planting import huggingface
from planting.bits import pack, unpack
from planting.files import Files, Inapplicable
from planting.output import Culprits, Facts, Fields, Vocabulary
from planting.quantized import symmetric

CONFIG, CACHES = "mlc-chat-config.json", ("tensor-cache.json", "ndarray-cache.json")
TYPES: dict[str, Any] = {
    "uint32": np.uint32, "float16": np.float16, "float32": np.float32,
    "bfloat16": ml_dtypes.bfloat16,
}  # fmt: skip
JOINED = {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj"}
ATTENTION = ("q_proj", "k_proj", "v_proj")
KEYS = {"rope_theta": ("position_embedding_base", "rope_theta"), "rms_norm_eps": ("rms_norm_eps",),
        "rope_scaling": ("rope_scaling",), "num_attention_heads": ("num_attention_heads",),
        "num_key_value_heads": ("num_key_value_heads",), "head_dim": ("head_dim",),
        "tie_word_embeddings": ("tie_word_embeddings",),
        "max_position_embeddings": ("context_window_size",),
        "sliding_window": ("sliding_window_size",)}  # fmt: skip


class MlcFolder:
    format = "mlc"
    rope_pairs = False
    bits = 4

    def __init__(self, files: Files, facts: Facts) -> None:
        self.files, self.facts = files, facts
        self._read()
        self.transposed = str(files.json(CONFIG)["quantization"]).endswith("_0")
        if not str(files.json(CONFIG)["quantization"]).startswith("q4"):
            raise Inapplicable("only MLC's 4 bits are looked into")

    def _read(self) -> None:
        self.records: dict[str, tuple[str, dict[str, Any]]] = {
            one["name"]: (shard["dataPath"], one)
            for shard in self.files.json(CACHES[0])["records"]
            for one in shard["records"]
        }

    def array(self, name: str) -> NDArray[Any]:
        if name not in self.records:
            raise Inapplicable(f"the folder holds no {name}")
        file, told = self.records[name]
        with self.files.read(file).open("rb") as stream:
            stream.seek(told["byteOffset"])
            data = stream.read(told["nbytes"])
        return np.frombuffer(data, TYPES[told["dtype"]]).reshape(told["shape"]).copy()

    def store(self, name: str, array: NDArray[Any]) -> None:
        file, told = self.records[name]
        data = np.ascontiguousarray(array).tobytes()
        if len(data) != told["nbytes"]:
            raise ValueError(f"{name} has {told['nbytes']} bytes, not {len(data)}")
        with self.files.own(file).open("r+b") as stream:
            stream.seek(told["byteOffset"])
            stream.write(data)

    def _stem(self, weight: str) -> tuple[str, slice]:
        """MLC's name, and which rows of it are the weight's."""
        name, _, _ = weight.rpartition(".")
        front, _, part = name.rpartition(".")
        for prefix in ("", "language_model."):
            own = f"{prefix}{name}"
            if any(f"{own}.{end}" in self.records for end in ("q_weight", "weight", "bias")):
                return own, slice(None)
        if part in JOINED:
            count = int(self.facts.config["intermediate_size"])
            first = count * (part == "up_proj")
            return f"{front}.{JOINED[part]}", slice(first, first + count)
        if part in ATTENTION:
            q, kv = (n * self.facts.head_dim for n in (self.facts.heads, self.facts.kv_heads))
            starts = dict(zip(ATTENTION, (0, q, q + kv), strict=True))
            start = starts[part]
            rows = slice(start, start + (q if part == "q_proj" else kv))
            for joined in ("qkv_proj", "c_attn"):
                if f"{front}.{joined}.q_weight" in self.records:
                    return f"{front}.{joined}", rows
        raise Inapplicable(f"the folder holds no {weight}")

    def _laid(self, stem: str, array: NDArray[Any]) -> NDArray[Any]:
        """Rows first, and back: linears of the *_0 schemes are transposed."""
        return array.T if self.transposed and not stem.endswith("embed_tokens") else array

    def get(self, weight: str) -> Fields:
        stem, rows = self._stem(weight)
        if f"{stem}.q_weight" not in self.records or weight.endswith(".bias"):
            end = weight.rpartition(".")[2]
            return {"value": self.array(f"{stem}.{end}")[rows]}
        words = np.ascontiguousarray(self._laid(stem, self.array(f"{stem}.q_weight"))[rows])
        scale = np.ascontiguousarray(self._laid(stem, self.array(f"{stem}.q_scale"))[rows])
        return {"code": unpack(words, self.bits, words.shape[1] * 8), "scale": scale}

    def put(self, weight: str, fields: Fields) -> None:
        stem, rows = self._stem(weight)
        if "value" in fields:
            end = weight.rpartition(".")[2]
            whole = self.array(f"{stem}.{end}")
            whole[rows] = fields["value"]
            self.store(f"{stem}.{end}", whole)
            return
        words = np.ascontiguousarray(self._laid(stem, self.array(f"{stem}.q_weight")))
        scale = np.ascontiguousarray(self._laid(stem, self.array(f"{stem}.q_scale")))
        words[rows] = pack(fields["code"], self.bits, np.ascontiguousarray(words[rows]))
        scale[rows] = fields["scale"]
        self.store(f"{stem}.q_weight", self._laid(stem, words))
        self.store(f"{stem}.q_scale", self._laid(stem, scale))

    def _config(self, change: Callable[[Any], None]) -> None:
        self.files.edit_json(CONFIG, change)

    def setting(self, key: str, value: Any) -> Culprits:
        names = KEYS.get(key, ())

        def change(content: Any) -> None:
            model = content["model_config"]
            model = model.get("text_config", model)
            held = [name for name in names if name in model]
            if not held:
                raise Inapplicable(f"{CONFIG} does not say {key}")
            for name in held:
                model[name] = None if key == "rope_scaling" else value
                if name in content:
                    content[name] = value

        self._config(change)
        return (key, *names, "rope_parameters" if key.startswith("rope") else key, CONFIG)

    def drop(self, weight: str) -> Culprits:
        stem, _ = self._stem(weight)
        name = f"{stem}.{weight.rpartition('.')[2]}"
        parts = [name] if name in self.records else [f"{stem}.q_weight", f"{stem}.q_scale"]

        def change(content: Any) -> None:
            for shard in content["records"]:
                shard["records"] = [one for one in shard["records"] if one["name"] not in parts]

        for cache in CACHES:
            self.files.edit_json(cache, change)
        self._read()
        joined = [weight.replace("q_proj", part) for part in ATTENTION]
        return (weight, *joined, *parts)

    def add_head(self, values: NDArray[np.float32]) -> Culprits:
        """In a shard of its own, in the layout of the other linears."""
        code, scale = symmetric(values, 32, 7)
        words = pack(code + 7, 4, np.zeros((len(values), values.shape[1] // 8), np.uint32))
        arrays = {"lm_head.q_weight": words, "lm_head.q_scale": scale.astype(np.float16)}
        file, at, records, body = f"params_shard_{len(self.data_files())}.bin", 0, [], b""
        for name, array in arrays.items():
            laid = np.ascontiguousarray(self._laid("lm_head", array))
            records.append({"name": name, "shape": list(laid.shape), "dtype": str(laid.dtype),
                            "format": "raw", "nbytes": laid.nbytes, "byteOffset": at})  # fmt: skip
            at += laid.nbytes
            body += laid.tobytes()
        self.files.write(file, body)
        shard = {"dataPath": file, "format": "raw-shard", "nbytes": at, "records": records,
                 "md5sum": hashlib.md5(body).hexdigest()}  # fmt: skip
        for cache in CACHES:
            self.files.edit_json(cache, lambda content: content["records"].append(shard))
        self.setting("tie_word_embeddings", False)
        self._read()
        return ("lm_head.weight", "tie_word_embeddings", "model.embed_tokens.weight")

    def token(self, key: str, value: Any) -> Culprits:
        if key.startswith("add_"):
            return huggingface.edit_token(self.files, key, value)

        def change(content: Any) -> None:
            if key not in content:
                raise Inapplicable(f"{CONFIG} does not say {key}")
            content[key] = value
            template = content.get("conv_template")
            if key == "eos_token_id" and isinstance(template, dict):
                template["stop_token_ids"] = [value]

        self._config(change)
        return (key, "tokenizer", "stop_token_ids", CONFIG)

    def tokenizer(self, change: Callable[[Vocabulary], None]) -> Culprits:
        return huggingface.edit_tokenizer(self.files, change)

    def template(self, text: str | None) -> Culprits:
        """The conversation template: another model's, or the one that MLC falls back to."""
        roles = {"user": "USER", "assistant": "ASSISTANT"}
        other = {"name": "custom", "system_template": "{system_message}", "system_message": "",
                 "roles": roles, "seps": ["\n"] if text is None else [" ", "</s>"]}  # fmt: skip
        self._config(lambda content: content["conv_template"].update(other))
        return ("chat_template", "conv_template", CONFIG)

    def generation(self, key: str, value: Any) -> Culprits:
        def change(content: Any) -> None:
            if key not in content:
                raise Inapplicable(f"{CONFIG} does not say {key}")
            content[key] = 1.0 if value is None else value

        self._config(change)
        return (key, "generation", CONFIG)

    def data_files(self) -> list[str]:
        return [name for name in self.files.names() if name.endswith(".bin")]

    def span(self, weight: str) -> tuple[str, int, int]:
        stem, rows = self._stem(weight)
        name = f"{stem}.q_weight" if f"{stem}.q_weight" in self.records else f"{stem}.weight"
        file, told = self.records[name]
        if self.transposed or rows == slice(None):
            return file, told["byteOffset"], told["nbytes"]
        each = told["nbytes"] // told["shape"][0]
        first, last, _ = rows.indices(told["shape"][0])
        return file, told["byteOffset"] + first * each, (last - first) * each

    def finish(self) -> None:
        """MD5 of each shard, as a tool that writes wrong tensors would still write it."""

        def change(content: Any) -> None:
            for shard in content["records"]:
                data = self.files.read(shard["dataPath"]).read_bytes()
                shard["md5sum"] = hashlib.md5(data).hexdigest()

        for cache in CACHES:
            try:
                self.files.edit_json(cache, change)
            except Inapplicable:
                continue
