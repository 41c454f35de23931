"""Folders for vLLM and its like: compressed-tensors, GPTQ, AWQ. Layouts as vLLM reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from planting import huggingface
from planting.bits import pack, unpack
from planting.files import Files, Inapplicable
from planting.output import Culprits, Facts, Fields, Vocabulary
from planting.safetensors import Tensors

AWQ_ORDER = np.array([0, 2, 4, 6, 1, 3, 5, 7])  # nibble i of a word holds column 8 j + ORDER[i]
CONFIG, QUANTIZATION = "config.json", "quantization_config"


class ServingFolder:
    format = "vllm"
    rope_pairs = False

    def __init__(self, files: Files, facts: Facts) -> None:
        self.files, self.facts = files, facts
        self.tensors = Tensors(files)
        told = files.json(CONFIG).get(QUANTIZATION) or {}
        self.method = str(told.get("quant_method", ""))
        groups = list((told.get("config_groups") or {}).values())
        weights = groups[0]["weights"] if groups else {}
        self.bits = int(told.get("bits") or weights.get("num_bits") or 16)

    def get(self, weight: str) -> Fields:
        return self._layout(weight)[0](weight.removesuffix(".weight"))

    def put(self, weight: str, fields: Fields) -> None:
        self._layout(weight)[1](weight.removesuffix(".weight"), fields)

    def _layout(self, weight: str) -> tuple[Callable[[str], Fields], Callable[[str, Fields], None]]:
        stem = weight.removesuffix(".weight")
        if self.tensors.has(f"{stem}.weight_packed"):
            return self._get_packed, self._put_packed
        if self.tensors.has(f"{stem}.qweight"):
            awq = self.method == "awq"
            return (self._get_awq, self._put_awq) if awq else (self._get_gptq, self._put_gptq)
        if self.tensors.has(f"{stem}.weight_scale"):
            return self._get_plain, self._put_plain
        if self.tensors.has(weight):
            return (
                lambda _: {"value": self.tensors.get(weight)},
                lambda _, fields: self.tensors.put(weight, fields["value"]),
            )
        raise Inapplicable(f"the folder holds no {weight}")

    # compressed-tensors, pack-quantized: unsigned codes along the rows, zero points along columns
    def _get_packed(self, stem: str) -> Fields:
        if not self.tensors.has(f"{stem}.weight_shape"):
            raise Inapplicable(f"{stem} is not of packed integers")
        rows, cols = self.tensors.get(f"{stem}.weight_shape").tolist()
        fields: Fields = {
            "code": unpack(self.tensors.get(f"{stem}.weight_packed"), self.bits, cols),
            "scale": self.tensors.get(f"{stem}.weight_scale"),
        }
        if self.tensors.has(f"{stem}.weight_zero_point"):
            packed = self.tensors.get(f"{stem}.weight_zero_point")
            fields["zero"] = unpack(packed.T, self.bits, rows).T
        return fields

    def _put_packed(self, stem: str, fields: Fields) -> None:
        name = f"{stem}.weight_packed"
        self.tensors.put(name, pack(fields["code"], self.bits, self.tensors.get(name)))
        self.tensors.put(f"{stem}.weight_scale", fields["scale"])
        if "zero" in fields:
            name = f"{stem}.weight_zero_point"
            like = np.ascontiguousarray(self.tensors.get(name).T)
            self.tensors.put(name, pack(fields["zero"].T, self.bits, like).T)

    # INT8 and FP8: one code in a byte
    def _get_plain(self, stem: str) -> Fields:
        code = self.tensors.get(f"{stem}.weight")
        if code.dtype == np.int8:
            code = code.astype(np.int16)
        return {"code": code, "scale": self.tensors.get(f"{stem}.weight_scale")}

    def _put_plain(self, stem: str, fields: Fields) -> None:
        code = fields["code"]
        self.tensors.put(f"{stem}.weight", code.astype(np.int8) if code.dtype.kind == "i" else code)
        self.tensors.put(f"{stem}.weight_scale", fields["scale"])

    # GPTQ: words along the inputs, zero points along the outputs, stored minus one
    def _get_gptq(self, stem: str) -> Fields:
        words, zeros = self._words(stem)
        return {
            "code": unpack(words.T, self.bits, words.shape[0] * 32 // self.bits),
            "scale": np.ascontiguousarray(self.tensors.get(f"{stem}.scales").T),
            "zero": np.ascontiguousarray(
                unpack(zeros, self.bits, zeros.shape[1] * 32 // self.bits).T
            ),
        }

    def _put_gptq(self, stem: str, fields: Fields) -> None:
        words, zeros = self._words(stem)
        packed = pack(fields["code"], self.bits, np.ascontiguousarray(words.T))
        self.tensors.put(f"{stem}.qweight", packed.T)
        self.tensors.put(f"{stem}.scales", fields["scale"].T)
        self.tensors.put(f"{stem}.qzeros", pack(fields["zero"].T, self.bits, zeros))

    # AWQ: both along the outputs, in an order of its own
    def _get_awq(self, stem: str) -> Fields:
        words, zeros = self._words(stem)
        return {
            "code": np.ascontiguousarray(_awq(unpack(words, 4, words.shape[1] * 8)).T),
            "scale": np.ascontiguousarray(self.tensors.get(f"{stem}.scales").T),
            "zero": np.ascontiguousarray(_awq(unpack(zeros, 4, zeros.shape[1] * 8)).T),
        }

    def _put_awq(self, stem: str, fields: Fields) -> None:
        words, zeros = self._words(stem)
        self.tensors.put(f"{stem}.qweight", pack(_into_awq(fields["code"].T), 4, words))
        self.tensors.put(f"{stem}.scales", fields["scale"].T)
        self.tensors.put(f"{stem}.qzeros", pack(_into_awq(fields["zero"].T), 4, zeros))

    def _words(self, stem: str) -> tuple[NDArray[Any], NDArray[Any]]:
        return self.tensors.get(f"{stem}.qweight"), self.tensors.get(f"{stem}.qzeros")

    def setting(self, key: str, value: Any) -> Culprits:
        def change(content: Any) -> None:
            rope = content.get("rope_parameters")
            if key in ("rope_theta", "rope_scaling") and not rope:
                raise Inapplicable(f"{CONFIG} has no rope_parameters")
            if key == "rope_theta":
                rope["rope_theta"] = value
            elif key == "rope_scaling":
                if rope.get("rope_type", "default") == "default":
                    raise Inapplicable("positions are not scaled")
                content["rope_parameters"] = {
                    "rope_theta": rope["rope_theta"], "rope_type": "default",
                }  # fmt: skip
            else:
                content[key] = value

        self.files.edit_json(CONFIG, change)
        return (key, "rope_parameters" if key.startswith("rope") else key, CONFIG)

    def quantization(self, change: Callable[[Any], None]) -> Culprits:
        """Change quantization_config."""
        self.files.edit_json(CONFIG, lambda content: change(content[QUANTIZATION]))
        return (QUANTIZATION, CONFIG, "config_groups")

    def drop(self, weight: str) -> Culprits:
        if not self.tensors.has(weight):
            raise Inapplicable(f"{weight} is not there")
        self.tensors.remove(weight)
        return (weight,)

    def add_head(self, values: NDArray[np.float32]) -> Culprits:
        self.tensors.add("lm_head.weight", "BF16", values.astype(ml_dtypes.bfloat16))
        self.setting("tie_word_embeddings", False)
        return ("lm_head.weight", "tie_word_embeddings", "model.embed_tokens.weight")

    def token(self, key: str, value: Any) -> Culprits:
        return huggingface.edit_token(self.files, key, value)

    def tokenizer(self, change: Callable[[Vocabulary], None]) -> Culprits:
        return huggingface.edit_tokenizer(self.files, change)

    def template(self, text: str | None) -> Culprits:
        return huggingface.edit_template(self.files, text)

    def generation(self, key: str, value: Any) -> Culprits:
        return huggingface.edit_generation(self.files, key, value)

    def data_files(self) -> list[str]:
        return self.tensors.data_files()

    def span(self, weight: str) -> tuple[str, int, int]:
        stem = weight.removesuffix(".weight")
        held = [name for name in (f"{stem}.weight_packed", f"{stem}.qweight", weight)
                if self.tensors.has(name)]  # fmt: skip
        if not held:
            raise Inapplicable(f"the folder holds no {weight}")
        place = self.tensors.places[held[0]]
        return place.file, place.offset, place.nbytes

    def finish(self) -> None:
        """A folder of safetensors holds no checksums."""


def _awq(codes: NDArray[Any]) -> NDArray[Any]:
    """Out of the order in which nibbles stand in words, into that of columns."""
    found = np.empty_like(codes).reshape(len(codes), -1, 8)
    found[..., AWQ_ORDER] = codes.reshape(found.shape)
    return found.reshape(codes.shape)


def _into_awq(codes: NDArray[Any]) -> NDArray[Any]:
    return codes.reshape(len(codes), -1, 8)[..., AWQ_ORDER].reshape(codes.shape)
