"""What a GGUF file says of its model, read from its keys alone, as llama.cpp takes them.

Source of what holds where a key is absent: llama.cpp, `src/llama-model.cpp` (`load_hparams`) and
`src/llama-vocab.cpp`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.gguf.architecture import Architecture
from qconvert.formats.gguf.architectures import ARCHITECTURES
from qconvert.formats.gguf.special_tokens import STOPS_BY_TEXT
from qconvert.formats.gguf.told_rope import LONG, PLAIN, SHORT, angles_of
from qconvert.formats.gguf.told_tokenizer import tokenizer_differences
from qconvert.formats.source import Source
from qconvert.formats.target import Reader
from qconvert.formats.told import Angles, Told

STOPS = (
    "eos",
    "eot",
    "eom",
)  # keys of tokens at which llama.cpp stops, besides texts that it knows
SIZES: Mapping[str, str] = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
}
"""Name in config.json -> key below the architecture's."""
TEMPLATE = "tokenizer.chat_template"
LISTED: Mapping[str, tuple[type, ...]] = {
    "tokenizer.ggml.tokens": (tuple, list), "tokenizer.ggml.merges": (tuple, list),
    "tokenizer.ggml.token_type": (np.ndarray, list), "tokenizer.ggml.scores": (np.ndarray, list),
}  # fmt: skip
TEXTS = frozenset({"general.architecture", TEMPLATE, "tokenizer.ggml.model", "tokenizer.ggml.pre"})


def told_of(reader: Reader, source: Source) -> Told:
    """What the file of `reader` says, and where its tokenizer is not the source's."""
    keys = _sound(reader.metadata)
    texts = keys.get("tokenizer.ggml.tokens") or ()
    named = {name: _token(keys, name) for name in ("bos", "eos", *STOPS[1:])}
    named |= {"pad": _token(keys, "padding"), "unk": _token(keys, "unknown")}
    stops = {named[name] for name in STOPS} - {None}
    stops |= {id for id, text in enumerate(texts) if text in STOPS_BY_TEXT}
    tokens: dict[str, Any] = {
        **{f"{name}_token": named[name] for name in ("bos", "eos", "pad", "unk")},
        "eos_token_id": tuple(sorted(one for one in stops if one is not None)),
        "add_bos_token": _flag(keys, "bos"),
        "add_eos_token": _flag(keys, "eos"),
    }
    model, dims = _model(keys, source)
    return Told(
        model=model,
        tokens=tokens,
        chat_template=keys.get(TEMPLATE),
        templates=dict(_named_templates(keys)),
        angles=_angles(keys, reader, dims) if dims else {},
        full=frozenset({"eos_token_id"} if all(named[name] is not None for name in STOPS) else ()),
        differs=tuple(tokenizer_differences(keys, source.folder)),
    )


def _sound(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Without values of a kind that their keys never have."""
    found: dict[str, Any] = {}
    for key, value in metadata.items():
        array = isinstance(value, np.ndarray) and value.size > 0 and not key.startswith("tokenizer")
        if key in LISTED:
            right = isinstance(value, LISTED[key])
        elif key in TEXTS:
            right = isinstance(value, str)
        else:
            right = array or isinstance(value, bool | int | str) or _is_finite(value)
        if right:
            found[key] = value
    return found


def _is_finite(value: Any) -> bool:
    return isinstance(value, float) and abs(value) < 1e300


def _own(keys: Mapping[str, Any], key: str) -> Any:
    """A key below the architecture's name."""
    return keys.get(f"{keys.get('general.architecture')}.{key}")


def _number(value: Any, default: float) -> float:
    """A finite number above 0; `default` for all else, which no angle can be made of."""
    if isinstance(value, int | float) and 0 < value < 1e30:
        return float(value)
    return default


def _model(keys: Mapping[str, Any], source: Source) -> tuple[dict[str, Any], int]:
    """Sizes and switches; how many values of a head are rotated, 0 without a rope."""

    def get(key: str) -> Any:
        value = _own(keys, key)
        return _one(value) if isinstance(value, np.ndarray) else value

    found = {name: get(key) for name, key in SIZES.items()}
    if found["num_key_value_heads"] is None:
        found["num_key_value_heads"] = found["num_attention_heads"]
    heads, hidden = found["num_attention_heads"], found["hidden_size"]
    size = get("attention.key_length")
    whole = isinstance(heads, int) and heads > 0 and isinstance(hidden, int)
    found["head_dim"] = size if size is not None else (hidden // heads if whole else None)
    values = get("attention.value_length")
    if values is not None and values != found["head_dim"]:
        found["head_dim"] = (found["head_dim"], values)
    found["vocab_size"] = get("vocab_size") or len(keys.get("tokenizer.ggml.tokens") or ()) or None
    rms, layer = get("attention.layer_norm_rms_epsilon"), get("attention.layer_norm_epsilon")
    arch = ARCHITECTURES.get(source.model_type)
    found["rms_norm_eps"] = layer if arch is not None and arch.norm == "layer" else rms
    name = keys.get("general.architecture")
    known = arch is not None and arch.name == name
    found["model_type"] = source.model_type if known else name
    if arch is None:
        return found, 0
    if arch.soft_cap:
        found["final_logit_softcapping"] = get("final_logit_softcapping")
    if arch.windows == "pattern":
        found["sliding_window"] = get("attention.sliding_window")
        found["layer_types"] = _layers(_own(keys, "attention.sliding_window_pattern"), found)
    if "use_parallel_residual" in arch.defaults:
        parallel = get("use_parallel_residual")
        found["use_parallel_residual"] = True if parallel is None else bool(parallel)
    return found, _rotated(found, get, arch) if arch.ropes else 0


def _rotated(found: dict[str, Any], get: Any, arch: Architecture) -> int:
    dims = get("rope.dimension_count")
    dims = found["head_dim"] if dims is None else dims
    found["rope_theta"] = get("rope.freq_base") or 10000.0
    if arch.local_rope:
        found["rope_local_base_freq"] = get("rope.freq_base_swa") or 10000.0
    found["rotated"] = dims
    return dims if isinstance(dims, int) and 0 < dims < 1 << 20 else 0


def _layers(pattern: Any, found: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Which layers slide; every sixth does not, where the file says nothing else."""
    count = found["num_hidden_layers"]
    if found["sliding_window"] is None or not isinstance(count, int) or not 0 < count < 10_000:
        return None
    slides = [bool((at + 1) % 6) for at in range(count)] if pattern is None else list(pattern)
    return tuple("sliding_attention" if one else "full_attention" for one in slides)


def _one(values: NDArray[Any]) -> Any:
    """A number for each layer, as one where all are alike."""
    found = sorted({one.item() for one in values})
    return found[0] if len(found) == 1 else tuple(found)


def _token(keys: Mapping[str, Any], name: str) -> int | None:
    value = keys.get(f"tokenizer.ggml.{name}_token_id")
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _flag(keys: Mapping[str, Any], name: str) -> bool:
    """Whether llama.cpp adds the token; without the key, as its kind of tokenizer has it."""
    value = keys.get(f"tokenizer.ggml.add_{name}_token")
    if value is not None:
        return bool(value)
    pieces = keys.get("tokenizer.ggml.model") == "llama"
    llama3 = keys.get("tokenizer.ggml.pre") in ("llama3", "llama-v3", "llama-bpe", "tekken")
    return name == "bos" and (pieces or llama3)


def _angles(keys: Mapping[str, Any], reader: Reader, dims: int) -> dict[str, Angles]:
    numbers = ("freq_base", "freq_base_swa", "scaling.factor", "scaling.attn_factor",
               "scaling.original_context_length")  # fmt: skip

    def get(key: str) -> Any:
        value = _own(keys, key)
        if value is None or key.removeprefix("rope.") not in numbers:
            return value if isinstance(value, str | int) else None
        return _number(value, 1.0)

    return angles_of(get, dims, _factors(reader))


def _factors(reader: Reader) -> dict[str, NDArray[np.float32]]:
    return {name: reader.decode(name) for name in (SHORT, LONG, PLAIN) if name in reader.tensors}


def _named_templates(keys: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in keys.items():
        if key.startswith(f"{TEMPLATE}.") and isinstance(value, str):
            yield key.removeprefix(f"{TEMPLATE}."), value
