"""Folders of vLLM, SGLang, LightLLM, TensorRT-LLM and Edge-LLM: config.json and safetensors.

Each layout is a module of `served` with an attribute `SERVED`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from qconvert.formats.discovery import offered
from qconvert.formats.refusal import refuse
from qconvert.formats.source import Source
from qconvert.runtimes.second.reading import HEAD, Floats, Lazy
from qconvert.runtimes.second.stored import FLOATS, Parts, opened

Decoder = Callable[[str, Parts], Floats]
"""The name of a quantized linear, and what is stored of it -> its weight [out, in]."""


class Served(Protocol):
    """A layout of quantized linears."""

    @property
    def name(self) -> str: ...
    def decoder(self, config: Mapping[str, Any], folder: Path) -> Decoder | None:
        """None where config.json, and what lies beside it, is not of this layout."""
        ...


def weights(path: Path, source: Source) -> Mapping[str, Floats]:
    """As `reading.second_weights`."""
    config = json.loads((path / "config.json").read_text("utf-8"))
    layouts = offered("qconvert.runtimes.second.served", "SERVED").values()
    decoders = (one.decoder(config, path) for one in layouts)
    decoder = next((one for one in decoders if one is not None), None)
    modules = opened(path)
    found: dict[str, Callable[[], Floats]] = {}
    for name in [*(one.name for one in source.tensors), *([HEAD] if source.tied else [])]:
        module, _, part = name.rpartition(".")
        parts = modules.get(module, {})
        if part in parts and parts[part].dtype in FLOATS:
            found[name] = parts[part].floats
        elif parts and part == "weight":
            found[name] = partial(_quantized, decoder, module, parts)
    return Lazy(found)


def _quantized(decoder: Decoder | None, module: str, parts: Parts) -> Floats:
    if decoder is None:
        raise refuse(f"{module} is not stored in float, and config.json tells of no quantization")
    try:
        return decoder(module, parts)
    except (KeyError, ValueError, IndexError) as fault:
        raise refuse(f"{module}: what is stored does not fit together: {fault!r}") from fault


@dataclass(frozen=True, slots=True)
class _Second:
    name: str = "serving"
    targets: frozenset[str] = frozenset({"vllm", "sglang", "lightllm", "trtllm", "edge-llm"})

    def weights(self, path: Path, source: Source) -> Mapping[str, Floats]:
        return weights(path, source)


SECOND = _Second()
