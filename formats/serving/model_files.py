"""The small files of a folder: config.json, and what is copied from the model's own folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qconvert.formats.refusal import Reason
from qconvert.formats.source import Dtype, Source

ARCHITECTURES: Mapping[str, str] = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gpt_neox": "GPTNeoXForCausalLM",
}
"""model_type of a text model -> what config.json names in `architectures`."""

COPIED = (
    "generation_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "spiece.model", "tekken.json",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip
"""What serving programs read beside weights and config.json."""
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "tekken.json")

TORCH_NAMES: Mapping[Dtype, str] = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_OF_THE_SOURCE = ("_name_or_path", "architectures", "dtype", "torch_dtype", "quantization_config")


def model_problems(source: Source, known: Mapping[str, str], program: str) -> Iterator[Reason]:
    """Why the model itself cannot be served, whatever the scheme; `known`: as ARCHITECTURES."""
    turned = [one for one in source.tensors if one.transposed]
    if turned:
        yield Reason(
            f"{turned[0].name} is stored transposed (Conv1D of {source.model_type}): loaders turn"
            " it by its name, and would turn packed weights too",
            "--to gguf takes this model",
        )
    elif source.model_type not in known:
        yield Reason(
            f"{program} is not known to serve models of type {source.model_type}",
            f"it serves {', '.join(known)}; --to gguf may take this one",
        )


def half_type(source: Source) -> Dtype:
    """The 16-bit float that loses nothing of the source, bfloat16 where neither does."""
    return "F16" if {tensor.dtype for tensor in source.tensors} == {"F16"} else "BF16"


def config_json(
    source: Source, architecture: str, floats: Dtype, quantization: Mapping[str, Any] | None
) -> bytes:
    """config.json of the text model, in the spelling of transformers 5 and of older readers."""
    kept = {key: value for key, value in source.config.items() if key not in _OF_THE_SOURCE}
    name = TORCH_NAMES[floats]
    fields = {
        "architectures": [architecture], **_older_rope(kept), **kept,
        "dtype": name, "torch_dtype": name,
    }  # fmt: skip
    if quantization is not None:
        fields["quantization_config"] = dict(quantization)
    return as_json(fields)


def _older_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` of `rope_parameters`, for readers that know only those: they
    would take 10000 for a base that they do not find. transformers 5 reads the same from both."""
    found = config.get("rope_parameters")
    if not isinstance(found, Mapping) or "rope_theta" not in found:
        return {}
    scaling = {key: value for key, value in found.items() if key != "rope_theta"}
    plain = scaling.get("rope_type", "default") == "default"
    return {"rope_theta": found["rope_theta"], **({} if plain else {"rope_scaling": scaling})}


def as_json(fields: Mapping[str, Any]) -> bytes:
    return (json.dumps(fields, indent=2, ensure_ascii=False) + "\n").encode()


def copied_files(source: Source) -> dict[str, Path]:
    """Name -> the source's own file, of those that there are."""
    return {name: path for name in COPIED if (path := source.folder / name).is_file()}


def file_notes(copies: Mapping[str, Path]) -> Iterator[str]:
    if not any(name in copies for name in TOKENIZERS):
        yield "the model has no tokenizer beside it: put one into the folder before serving it"
