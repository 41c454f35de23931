"""How TensorRT-LLM is told what a folder holds: two files, of which the loader follows one.

Source: NVIDIA/TensorRT-LLM, `quantization/modelopt_config.py` @ 2edf354 and
`_torch/model_config.py` @ 008e0af; restated. Names in `exclude_modules` are patterns of fnmatch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from qconvert.formats.checkpoint_files import read_json_object
from qconvert.formats.trtllm.linears import Fused

CONFIG = "config.json"
FILE = "hf_quant_config.json"
MIXED = "MIXED_PRECISION"
ALIASES: Mapping[Any, str] = {"fp8_pb_wo": "FP8_BLOCK_SCALES"}
"""Other spellings, to the letter, that are understood outside of `quantized_layers`."""
AGAIN = "write the folder again"


@dataclass(frozen=True, slots=True)
class Quantization:
    """What the file says that the loader follows."""

    file: str
    algorithm: str | None
    group: Any
    cache: Any  # "FP8", "NVFP4", None
    excluded: Sequence[str]
    layers: Mapping[str, Mapping[str, Any]]
    zero_points: bool

    def excludes(self, module: str) -> bool:
        return any(fnmatchcase(module, pattern) for pattern in self.excluded)

    def of(self, fused: Fused) -> tuple[str | None, Any]:
        """Algorithm and size of groups. Joined linears stay float where one of them does; in mixed
        precision they take the entry of q_proj, also where they are stored joined, or of gate_proj;
        others take that of their exact name."""
        if any(self.excludes(one.module) for one in fused.members):
            return None, None
        if self.algorithm != MIXED:
            return self.algorithm, self.group
        entry = self.layers.get(fused.looked_up)
        return (None, None) if entry is None else (entry.get("quant_algo"), entry.get("group_size"))


def told(folder: Path, config: Mapping[str, Any]) -> Quantization | None:
    """None where neither file says that ModelOpt's form is meant."""
    nested = nested_of(folder)
    flat = config.get("quantization_config")
    if nested is not None:
        return _read(FILE, nested, "exclude_modules", nested.get("kv_cache_quant_algo"))
    if not isinstance(flat, Mapping):
        return None
    producer = flat.get("producer") or {}
    method = str(flat.get("quant_method", "")).lower()
    if not method.startswith("modelopt") and producer.get("name") != "modelopt":
        return None
    return _read(CONFIG, flat, "ignore", _cache(flat.get("kv_cache_scheme")))


def nested_of(folder: Path) -> Mapping[str, Any] | None:
    """What hf_quant_config.json says, if there is one; `Refused` where it cannot be read."""
    if not (folder / FILE).is_file():
        return None
    found = read_json_object(folder / FILE, AGAIN).get("quantization")
    return found if isinstance(found, Mapping) else None


def _read(file: str, said: Mapping[str, Any], excluded: str, cache: Any) -> Quantization:
    algorithm, layers = said.get("quant_algo"), said.get("quantized_layers")
    return Quantization(
        file,
        ALIASES.get(algorithm, algorithm),
        said.get("group_size"),
        cache,
        tuple(said.get(excluded) or ()),
        layers if isinstance(layers, Mapping) else {},
        bool(said.get("has_zero_point")),
    )


def _cache(scheme: Any) -> Any:
    if isinstance(scheme, Mapping):
        return "FP8" if (scheme.get("type"), scheme.get("num_bits")) == ("float", 8) else "unknown"
    return scheme


def differences(folder: Path, config: Mapping[str, Any]) -> Iterator[str]:
    """What the two files say differently; the loader warns and follows hf_quant_config.json.
    ModelOpt 0.47 leaves the size of groups out of config.json: that is not counted."""
    nested, flat = nested_of(folder), config.get("quantization_config")
    if nested is None or not isinstance(flat, Mapping):
        return
    size = nested.get("group_size")
    pairs = {
        "quant_algo": (nested.get("quant_algo"), flat.get("quant_algo")),
        "group_size": (size, flat.get("group_size", size)),
        "the KV cache": (nested.get("kv_cache_quant_algo"), _cache(flat.get("kv_cache_scheme"))),
        "what stays float": (set(nested.get("exclude_modules") or ()),
                             set(flat.get("ignore") or ())),
        "quantized_layers": (_layers(nested), _layers(flat)),
    }  # fmt: skip
    for what, (one, other) in pairs.items():
        if one != other:
            yield what


def _layers(said: Mapping[str, Any]) -> dict[str, Any]:
    """Module -> algorithm, whatever its spelling: other programs know other spellings."""
    names = {
        name: one.get("quant_algo") for name, one in (said.get("quantized_layers") or {}).items()
    }
    return {name: ALIASES.get(one, one) for name, one in names.items()}
