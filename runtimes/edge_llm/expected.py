"""What the loader should make of a folder, by the folder's configuration and the source's tensors.

Nothing here is taken from the tensors that the folder holds: a tensor that is missing or one too
many is found because it is not as it should be, not because two counts of the same file differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qconvert.formats.checkpoint_files import read_json_object
from qconvert.formats.source import Source, SourceTensor
from qconvert.formats.trtllm.told import AGAIN, CONFIG, MIXED, Quantization, told
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


def _said(path: Path) -> Quantization | None:
    return told(path, read_json_object(path / CONFIG, AGAIN))


def _form(said: Quantization | None, module: str) -> tuple[Form, int]:
    """How `module`, a linear in a block, is stored, and its group."""
    if said is None or said.excludes(module):
        return FLOAT_LINEAR, 0
    algorithm, group = said.algorithm, said.group
    if algorithm == MIXED:
        own = said.layers.get(module)
        if own is None:
            return FLOAT_LINEAR, 0
        algorithm, group = own["quant_algo"], own.get("group_size")
    if algorithm is None:
        return FLOAT_LINEAR, 0
    return FORMS[algorithm], int(group or 0) or GROUPS.get(algorithm, 0)


def unread(path: Path) -> str:
    """Why Edge-LLM does not read the folder as it is meant; empty where it does."""
    said = _said(path)
    if said is None:
        return ""
    named = {one.get("quant_algo") for one in said.layers.values()} | {said.algorithm}
    strange = sorted(str(one) for one in named - {*FORMS, MIXED, None})
    if strange:
        return f"it does not read {' and '.join(strange)}"
    if said.cache is not None and said.cache not in CACHES:
        return f"it would take scales of an {said.cache} cache for those of an FP8 cache"
    return ""


def expected(path: Path, source: Source) -> Expected:
    """`unread` must have found nothing."""
    said = _said(path)
    stored: set[str] = set()
    modules: dict[str, Module] = {}
    biased = {one.name.rpartition(".")[0] for one in source.tensors if one.part == "bias"}
    joining: dict[int, list[tuple[SourceTensor, Form, int]]] = {}
    for one in source.tensors:
        name = one.name.rpartition(".")[0]
        linear = one.role in LINEARS and one.block is not None and one.part == "weight"
        if not linear:
            stored.add(one.name)
            if one.part == "weight":
                modules[name] = Module("FP16Linear" if name == HEAD else "",
                                       {"weight": (one.shape, FLOAT)})  # fmt: skip
            continue
        form, group = _form(said, name)
        stored.update(f"{name}.{part}" for part in form.stored)
        if one.role in form.scaled:
            stored.add(f"{name}.{COLUMN_SCALE}")
        if said is not None and said.cache and one.role in ("attn_k", "attn_v"):
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
