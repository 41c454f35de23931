"""What the loader should make of a folder, by the folder's configuration and the source's tensors.

Nothing here is taken from the tensors that the folder holds: a tensor that is missing or one too
many is found because it is not as it should be, not because two counts of the same file differ.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qconvert.formats.source import Source, SourceTensor
from qconvert.runtimes.edge_llm.forms import (
    CACHES,
    COLUMN_SCALE,
    FLOAT,
    FLOAT_LINEAR,
    FORMS,
    GROUPS,
    Form,
    Shape,
)

FILE = "hf_quant_config.json"
MIXED = "MIXED_PRECISION"
LINEARS = {
    "attn_q", "attn_k", "attn_v", "attn_o", "ffn_gate", "ffn_up", "ffn_down",
}  # fmt: skip
HEAD = "lm_head"
QKV = ("attn_q", "attn_k", "attn_v")
FUSED = "qkv_proj_fused"


@dataclass(frozen=True, slots=True)
class Module:
    """A module as it should be held: its class ("" where any will do), and its buffers."""

    kind: str
    buffers: Mapping[str, tuple[Shape, str]]


@dataclass(frozen=True, slots=True)
class Expected:
    stored: frozenset[str]  # names of all tensors of the folder
    modules: Mapping[str, Module]


@dataclass(frozen=True, slots=True)
class Told:
    """What a folder's configuration says."""

    main: str  # quant_algo, upper case; "" where nothing is quantized
    layers: Mapping[str, Mapping[str, Any]]  # of MIXED_PRECISION: module -> its own numbers
    group: int
    cache: str  # "FP8", "NVFP4", ""
    scaled: bool  # that there are scales of columns

    def form(self, module: str) -> tuple[Form, int]:
        """How `module`, a linear in a block, is stored, and its group."""
        own = self.layers.get(module)
        if self.main == MIXED and own is None:
            return FLOAT_LINEAR, 0
        algorithm = str(own["quant_algo"]).upper() if own else self.main
        group = int((own or {}).get("group_size", self.group)) or GROUPS.get(algorithm, 0)
        return FORMS[algorithm], group


def told_by(path: Path) -> Told:
    """hf_quant_config.json where there is one; else the key of config.json."""
    nested = path / FILE
    if nested.is_file():
        found = json.loads(nested.read_text("utf-8")).get("quantization", {})
    else:
        found = json.loads((path / "config.json").read_text("utf-8"))
        found = found.get("quantization_config", {})
    cache = found.get("kv_cache_quant_algo")
    return Told(
        str(found.get("quant_algo") or "").upper(),
        found.get("quantized_layers", {}),
        int(found.get("group_size") or 0),
        str(cache or "").upper(),
        bool(found.get(COLUMN_SCALE, False)),
    )


def unread(path: Path) -> str:
    """Why Edge-LLM does not read the folder as it is meant; empty where it does."""
    told = told_by(path)
    named = {str(one["quant_algo"]).upper() for one in told.layers.values()}
    named |= {told.main} - {MIXED, ""}
    strange = sorted(named - set(FORMS))
    if strange:
        return f"it does not read {' and '.join(strange)}"
    if told.cache and told.cache not in CACHES:
        return f"it would take scales of an {told.cache} cache for those of an FP8 cache"
    return ""


def expected(path: Path, source: Source) -> Expected:
    """`unread` must have found nothing."""
    told = told_by(path)
    excluded = _excluded(path)
    stored: set[str] = set()
    modules: dict[str, Module] = {}
    biased = {one.name.rpartition(".")[0] for one in source.tensors if one.part == "bias"}
    joining: dict[int, list[tuple[SourceTensor, Form, int]]] = {}
    for one in source.tensors:
        name = one.name.rpartition(".")[0]
        linear = one.role in LINEARS and one.block is not None and one.part == "weight"
        if not linear or not told.main:
            stored.add(one.name)
        if not linear:
            if one.part == "weight":
                modules[name] = Module("FP16Linear" if name == HEAD else "",
                                       {"weight": (one.shape, FLOAT)})  # fmt: skip
            continue
        form, group = (FLOAT_LINEAR, 0) if name in excluded or not told.main else told.form(name)
        stored.update(f"{name}.{part}" for part in form.stored)
        if told.scaled and one.role in form.scaled:
            stored.add(f"{name}.{COLUMN_SCALE}")
        if told.cache and one.role in ("attn_k", "attn_v"):
            stored.add(f"{name}.{'k' if one.role == 'attn_k' else 'v'}_scale")
        if form.joined and one.role in QKV:
            assert one.block is not None
            joining.setdefault(one.block, []).append((one, form, group))
        modules[name] = _module(form, *_sizes(one.shape), group, name in biased)
    if source.tied:
        rows = next(one.shape for one in source.tensors if one.role == "embedding")
        modules[HEAD] = Module("FP16Linear", {"weight": (rows, FLOAT)})
    for members in joining.values():
        if len({form.module for _, form, _ in members}) == 1 and len(members) == len(QKV):
            _join(members, modules, biased)
    return Expected(frozenset(stored), modules)


def _sizes(shape: Shape) -> tuple[int, int]:
    rows, columns = shape
    return rows, columns


def _module(form: Form, rows: int, columns: int, group: int, biased: bool) -> Module:
    buffers = {
        name: (held(rows, columns, group), type_) for name, (held, type_) in form.held.items()
    }
    if biased:
        buffers["bias"] = ((rows,), FLOAT)
    return Module(form.module, buffers)


def _join(
    members: list[tuple[SourceTensor, Form, int]], modules: dict[str, Module], biased: set[str]
) -> None:
    """q, k and v in one: one below the other."""
    first, form, group = members[0]
    for one, _, _ in members:
        del modules[one.name.rpartition(".")[0]]
    attention = first.name.rpartition(".")[0].rpartition(".")[0]
    rows = sum(one.shape[0] for one, _, _ in members)
    has_bias = first.name.rpartition(".")[0] in biased
    modules[f"{attention}.{FUSED}"] = _module(form, rows, first.shape[1], group, has_bias)


def _excluded(path: Path) -> frozenset[str]:
    """Modules that the folder names as float, by their exact names."""
    nested = path / FILE
    if not nested.is_file():
        return frozenset()
    found = json.loads(nested.read_text("utf-8")).get("quantization", {})
    return frozenset(found.get("exclude_modules") or ())
