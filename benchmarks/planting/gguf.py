"""GGUF files. Offsets come from gguf-py's reader, bytes are changed where they lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gguf
import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from planting.files import Files, Inapplicable
from planting.gguf_blocks import BLOCKS, bytes_of, fields_of
from planting.gguf_file import TYPE, Entry, Parts, field, parts_of, write
from planting.output import CUT_AS_IT_WAS, Culprits, Facts, Fields, Vocabulary

KIND = gguf.GGMLQuantizationType
FLOATS: Mapping[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
OUTSIDE = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight":
           "output_norm.weight", "lm_head.weight": "output.weight"}  # fmt: skip
PARTS = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip
KEYS = {  # config.json -> the key below the architecture's name
    "rope_theta": "rope.freq_base", "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "num_key_value_heads": "attention.head_count_kv", "num_attention_heads": "attention.head_count",
    "head_dim": "attention.key_length", "max_position_embeddings": "context_length",
    "sliding_window": "attention.sliding_window", "num_hidden_layers": "block_count",
}  # fmt: skip
TOKENS = {
    "bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id",
    "pad_token_id": "padding_token_id", "unk_token_id": "unknown_token_id",
    "add_bos_token": "add_bos_token", "eot_token_id": "eot_token_id",
}  # fmt: skip
CONTROL, NORMAL = 3, 1
ROPE_FACTORS = "rope_freqs.weight"


class GgufFile:
    format = "gguf"

    def __init__(self, files: Files, facts: Facts) -> None:
        self.files, self.facts = files, facts
        self.name = files.path.name
        self.parts: Parts = parts_of(files.path)
        self.architecture = str(self.parts.values.get("general.architecture"))

    @property
    def rope_pairs(self) -> bool:
        return self.architecture == "llama"

    def stored(self, weight: str) -> str:
        """What the file calls a checkpoint's tensor."""
        if weight in OUTSIDE:
            return OUTSIDE[weight]
        _, _, number, rest = weight.split(".", 3)
        stem, _, part = rest.rpartition(".")
        if stem not in PARTS:
            raise Inapplicable(f"no name for {weight}")
        return f"blk.{number}.{PARTS[stem]}.{part}"

    def _entry(self, weight: str) -> Entry:
        name = self.stored(weight)
        if name not in self.parts.tensors:
            raise Inapplicable(f"the file holds no {name}")
        return self.parts.tensors[name]

    def _raw(self, weight: str) -> NDArray[np.uint8]:
        one = self._entry(weight)
        with self.files.path.open("rb") as stream:
            stream.seek(one.offset)
            data = np.frombuffer(stream.read(one.nbytes), np.uint8)
        return data.reshape(one.shape[-1] if len(one.shape) > 1 else 1, -1)

    def get(self, weight: str) -> Fields:
        kind, one = KIND(self._entry(weight).type).name, self._entry(weight)
        raw = self._raw(weight)
        if kind in FLOATS:
            return {"value": raw.copy().view(FLOATS[kind]).reshape(one.shape[::-1])}
        if kind not in BLOCKS:
            raise Inapplicable(f"{kind} is not looked into")
        return fields_of(raw, BLOCKS[kind])

    def put(self, weight: str, fields: Fields) -> None:
        one = self._entry(weight)
        if "value" in fields:
            data = np.ascontiguousarray(fields["value"]).tobytes()
        else:
            data = bytes_of(self._raw(weight), BLOCKS[KIND(one.type).name], fields).tobytes()
        if len(data) != one.nbytes:
            raise Inapplicable(f"{weight} has {one.nbytes} bytes, not {len(data)}")
        with self.files.own(self.name).open("r+b") as stream:
            stream.seek(one.offset)
            stream.write(data)

    def fields(self, **changed: Any) -> None:
        """Write the header again: keys with dots as "__"; None takes a field out."""
        self.change({key.replace("__", "."): value for key, value in changed.items()})

    def change(self, changed: Mapping[str, Any]) -> None:
        held = dict(self.parts.fields)
        for key, value in changed.items():
            if value is None:
                if held.pop(key, None) is None:
                    raise Inapplicable(f"the file has no {key}")
                continue
            held[key] = field(key, value, self.parts.types.get(key) or _types(value))
        if held == self.parts.fields:
            raise Inapplicable(f"{', '.join(changed)} would stay as they are")
        self._write(held, self.parts.tensors)

    def _write(
        self,
        fields: Mapping[str, bytes],
        tensors: Mapping[str, Entry],
        added: Mapping[str, bytes] | None = None,
    ) -> None:
        whole = write(self.parts, self.files.path, fields, tensors, added)
        self.files.write(self.name, whole)
        self.parts = parts_of(self.files.path)

    def setting(self, key: str, value: Any) -> Culprits:
        if key == "rope_scaling":
            return self._drop_stored(ROPE_FACTORS, ("rope_scaling", "rope_parameters"))
        if key == "tie_word_embeddings":
            raise Inapplicable("a GGUF file is tied when it holds no head")
        own = KEYS.get(key)
        if own is None or f"{self.architecture}.{own}" not in self.parts.fields:
            raise Inapplicable(f"the file does not hold {key}")
        changed = {f"{self.architecture}.{own}": value}
        if key == "head_dim":
            changed[f"{self.architecture}.attention.value_length"] = value
            changed[f"{self.architecture}.rope.dimension_count"] = value
        self.change(changed)
        return (key, *changed)

    def drop(self, weight: str) -> Culprits:
        return self._drop_stored(self.stored(weight), (weight,))

    def _drop_stored(self, name: str, culprits: Culprits) -> Culprits:
        if name not in self.parts.tensors:
            raise Inapplicable(f"the file holds no {name}")
        left = {key: one for key, one in self.parts.tensors.items() if key != name}
        self._write(self.parts.fields, left)
        return (*culprits, name)

    def retype(self, weight: str, kind: gguf.GGMLQuantizationType) -> None:
        """The same bytes under another type of the same width."""
        name, one = self.stored(weight), self._entry(weight)
        changed = Entry(one.shape, int(kind), one.offset, one.nbytes)
        self._write(self.parts.fields, {**self.parts.tensors, name: changed})

    def add_head(self, values: NDArray[np.float32]) -> Culprits:
        data = values.astype(np.float16).tobytes()
        head = Entry(values.shape[::-1], int(KIND.F16), 0, len(data))
        tensors = {**self.parts.tensors, "output.weight": head}
        self._write(self.parts.fields, tensors, {"output.weight": data})
        return ("lm_head.weight", "output.weight", "tie_word_embeddings",
                "model.embed_tokens.weight")  # fmt: skip

    def token(self, key: str, value: Any) -> Culprits:
        if key not in TOKENS:
            raise Inapplicable(f"the file has no place for {key}")
        self.change({f"tokenizer.ggml.{TOKENS[key]}": value})
        return (key, f"tokenizer.ggml.{TOKENS[key]}", "tokenizer")

    def tokenizer(self, change: Callable[[Vocabulary], None]) -> Culprits:
        held = {key.removeprefix("tokenizer.ggml."): list(value)
                for key, value in self.parts.arrays.items()}  # fmt: skip
        kinds = held["token_type"]
        special = {at: kind == CONTROL for at, kind in enumerate(kinds) if kind != NORMAL}
        was = dict(special)
        seen = Vocabulary(list(held["tokens"]), list(held.get("merges", ())), special,
                          CUT_AS_IT_WAS)  # fmt: skip
        change(seen)
        for at, now in seen.special.items():
            if was[at] != now:
                kinds[at] = CONTROL if now else NORMAL
        changed: dict[str, Any] = {"tokens": seen.tokens, "token_type": kinds,
                                   "merges": seen.merges}  # fmt: skip
        if seen.cut != CUT_AS_IT_WAS:
            here = self.parts.values.get("tokenizer.ggml.pre")
            changed["pre"] = "llama-bpe" if here != "llama-bpe" else "gpt-2"
        self.change({f"tokenizer.ggml.{key}": value for key, value in changed.items()})
        return ("tokenizer", "pre_tokenizer", "vocabulary", "merges", "special tokens",
                *(f"tokenizer.ggml.{key}" for key in changed))  # fmt: skip

    def template(self, text: str | None) -> Culprits:
        self.change({"tokenizer.chat_template": text})
        return ("chat_template", "tokenizer.chat_template")

    def generation(self, key: str, value: Any) -> Culprits:
        raise Inapplicable("the file holds no generation settings")

    def data_files(self) -> list[str]:
        return [name for name in self.files.names() if name.endswith(".gguf")]

    def span(self, weight: str) -> tuple[str, int, int]:
        one = self._entry(weight)
        return self.name, one.offset, one.nbytes

    def finish(self) -> None:
        """A GGUF file holds no checksums."""


def _types(value: Any) -> tuple[gguf.GGUFValueType, ...]:
    kinds = {str: TYPE.STRING, bool: TYPE.BOOL, int: TYPE.UINT32, float: TYPE.FLOAT32}
    return (kinds[type(value)],)
