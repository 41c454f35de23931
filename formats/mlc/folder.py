"""What a folder holds, planned from headers: where the rows of each source tensor go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from qconvert.formats.grid import Grid
from qconvert.formats.mlc.architectures import NORMS, Architecture
from qconvert.formats.mlc.cache import Record
from qconvert.formats.mlc.grids import ModelDtype
from qconvert.formats.mlc.schemes import Scheme
from qconvert.formats.source import Source, SourceTensor
from qconvert.formats.target import OutputTensor, Plan

Q_WEIGHT, Q_SCALE = "q_weight", "q_scale"
HEAD = "lm_head.weight"
NAMES: Mapping[ModelDtype, str] = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where the rows of a planned tensor go."""

    module: str  # "model.layers.0.self_attn.qkv_proj", or the whole name of what is kept float
    first: int  # row of the joined tensor that its first row becomes
    layout: Literal["NK", "KN", "float"]


@dataclass(frozen=True, slots=True)
class Layout:
    """All of a folder but its weights."""

    scheme: Scheme
    compatible: bool  # codes and scales are stored as they are, float32 as bfloat16
    places: Mapping[str, Place]  # by the planned tensor's name
    records: Mapping[str, Record]  # by name, in the order of the file
    files: Mapping[str, bytes] = field(default_factory=dict)
    copies: Mapping[str, Path] = field(default_factory=dict)

    @property
    def narrow(self) -> bool:
        """Whether float32 is stored as bfloat16."""
        return self.compatible and self.scheme.dtype == "float32"


def layout_of(plan: Plan) -> Layout:
    found = plan.details["mlc"]
    assert isinstance(found, Layout)
    return found


def stored_name(tensor: SourceTensor, arch: Architecture) -> str:
    """The name of the whole that `tensor` is rows of: "model.layers.0.self_attn.qkv_proj.bias"."""
    module, _, part = tensor.name.rpartition(".")
    fused = arch.fused.get(tensor.role)
    if fused is not None:
        module = f"{module.rpartition('.')[0]}.{fused}"
    return f"{arch.prefix}{module}.{part}"


def plan_tensors(
    source: Source, arch: Architecture, scheme: Scheme, *, compatible: bool
) -> tuple[tuple[OutputTensor, ...], dict[str, Place], dict[str, Record]]:
    """Every tensor in the order of the source, and what is stored of them, joined ones together."""
    grid = scheme.grid(compatible=compatible) if scheme.quantizes else None
    narrow = compatible and scheme.dtype == "float32"
    outputs: list[OutputTensor] = []
    places: dict[str, Place] = {}
    rows: dict[str, list[int]] = {}  # whole -> of each of its parts
    for name, tensor in _wanted(source, arch):
        whole = stored_name(tensor, arch) if name != HEAD else f"{arch.prefix}{HEAD}"
        role = tensor.role if name != HEAD else "head"
        fitted = _is_quantized(tensor, role, scheme)
        parts = rows.setdefault(whole, [])
        first = sum(parts)
        parts.append(tensor.shape[0])
        outputs.append(_output(name, tensor, scheme, grid if fitted else None, narrow, arch))
        if not fitted:
            places[name] = Place(whole, first, "float")
        else:
            kind = "NK" if role == "embedding" else scheme.layout
            places[name] = Place(whole.rpartition(".")[0], first, kind)
    records = _records(outputs, places, rows, scheme, narrow)
    return tuple(outputs), places, {one.name: one for one in records}


def _wanted(source: Source, arch: Architecture) -> Iterator[tuple[str, SourceTensor]]:
    """What is planned, by the name it is planned under, and what it is made of."""
    yield from ((one.name, one) for one in source.tensors)
    if source.tied and arch.head == "always":
        yield HEAD, next(one for one in source.tensors if one.role == "embedding")


def _is_quantized(tensor: SourceTensor, role: str, scheme: Scheme) -> bool:
    if not scheme.quantizes or len(tensor.shape) < 2:
        return False
    return scheme.ends or role not in ("embedding", "head")


def _output(
    name: str, tensor: SourceTensor, scheme: Scheme, grid: Grid | None, narrow: bool,
    arch: Architecture,
) -> OutputTensor:  # fmt: skip
    if grid is not None:
        cols = tensor.shape[1]
        scale = 4 if scheme.dtype == "float32" and not narrow else 2
        nbytes = tensor.shape[0] * (4 * scheme.words(cols) + scale * scheme.groups(cols))
        return OutputTensor(name, tensor.shape, grid, scheme.name, nbytes, tensor)
    size = 4 if scheme.dtype == "float32" and not narrow else 2
    count = tensor.shape[0] * (tensor.shape[1] if len(tensor.shape) > 1 else 1)
    add = arch.norm_add if tensor.role in NORMS and tensor.part == "weight" else 0.0
    kind = "BF16" if narrow else NAMES[scheme.dtype]
    return OutputTensor(name, tensor.shape, None, kind, count * size, tensor, add=add)


def _records(
    outputs: list[OutputTensor], places: Mapping[str, Place], rows: Mapping[str, list[int]],
    scheme: Scheme, narrow: bool,
) -> Iterator[Record]:  # fmt: skip
    form = "f32-to-bf16" if narrow else "raw"
    seen: set[str] = set()
    for tensor in outputs:
        place = places[tensor.name]
        if place.module in seen:
            continue
        seen.add(place.module)
        if place.layout == "float":
            shape = (sum(rows[place.module]), *tensor.shape[1:])
            yield Record(place.module, shape, scheme.dtype, form)
            continue
        count, cols = sum(rows[f"{place.module}.weight"]), tensor.shape[1]
        words, scales = (count, scheme.words(cols)), (count, scheme.groups(cols))
        turn = -1 if place.layout == "KN" else 1
        yield Record(f"{place.module}.{Q_WEIGHT}", words[::turn], "uint32", form)
        yield Record(f"{place.module}.{Q_SCALE}", scales[::turn], scheme.dtype, form)
