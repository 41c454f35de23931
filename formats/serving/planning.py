"""From schemes and a container to the tensors and files of a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from qconvert.formats.refusal import refuse
from qconvert.formats.serving.choice import Choice
from qconvert.formats.serving.container import Container, Entry, FolderPlan, Linear, Measured, Told
from qconvert.formats.serving.fused import Fusing, joined, module_of
from qconvert.formats.serving.mark import MARK, mark_json
from qconvert.formats.serving.model_files import config_json, copied_files
from qconvert.formats.serving.placing import Place
from qconvert.formats.serving.schemes import rounding_of
from qconvert.formats.source import Dtype, Source, SourceTensor
from qconvert.formats.target import OutputTensor


@dataclass(frozen=True, slots=True)
class CacheRule:
    """How the scales of a KV cache are kept. `measured`: of the modules of k and v, of their
    weights, and of the cache's type, what calibration is to find in a block. `stored`: as tensors,
    not only in a file that is made of them."""

    measured: Callable[
        [Container | None, tuple[str, str], tuple[str, str], str], tuple[Measured, ...]
    ]
    stored: bool = True


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a folder will hold; a target adds to it what is its own."""

    target: str
    source: Source
    choice: Choice
    place: Place | None  # None: nothing is quantized, and no cache
    linears: Mapping[str, Linear]  # quantized, by the weight's name
    floats: tuple[str, ...]  # modules of linears that stay float, and the head
    float_type: Dtype
    kv: str | None
    architecture: str

    @property
    def container(self) -> Container | None:
        return None if self.place is None else self.place.container


@dataclass(frozen=True, slots=True)
class Extras:
    """What one program wants besides the folder that all read."""

    files: Mapping[str, bytes] = field(default_factory=dict)
    made: Mapping[str, Callable[[Mapping[str, float]], bytes]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()  # of the command that serves the folder; {folder}: where it lies


def _in_container(
    container: Container | None, modules: tuple[str, str], weights: tuple[str, str], kv: str
) -> tuple[Measured, ...]:
    return () if container is None else container.cache(*modules, weights, kv)


IN_CONTAINER = CacheRule(_in_container)
"""The container says what is stored."""


def plan_folder(
    drawn: Drawn, fusing: Fusing, cache: CacheRule, extras: Extras, split_bytes: int | None
) -> tuple[tuple[OutputTensor, ...], FolderPlan]:
    """All tensors in the order of the source, numbers that are measured after the linears that
    they belong to; and all that is beside them."""
    told = Told(
        list(drawn.linears.values()), drawn.floats, drawn.kv if cache.stored else None,
        drawn.architecture,
        {module_of(one): one.role for one in drawn.source.tensors if one.part == "weight"},
    )  # fmt: skip
    config = None if drawn.container is None else drawn.container.config(told)
    quantization = None if config is None else config.quantization
    files = {
        "config.json": config_json(
            drawn.source, drawn.architecture, drawn.float_type, quantization
        ),
        MARK: mark_json(
            drawn.target,
            drawn.choice.type,
            None if drawn.container is None else drawn.container.name,
            drawn.kv,
            () if drawn.place is None else drawn.place.verdict.places,
        ),
        **(config.files if config else {}),
        **extras.files,
    }
    joint = _joint(drawn, fusing)
    outputs, entries = [], {}
    for tensor, stored in _tensors(drawn, fusing, cache, joint):
        outputs.append(tensor)
        entries[tensor.name] = stored
    folder = FolderPlan(
        entries=entries,
        linears=drawn.linears,
        container=drawn.container,
        float_type=drawn.float_type,
        files=files,
        copies=copied_files(drawn.source),
        joint=joint,
        made=extras.made,
    )
    if split_bytes is not None:
        folder = replace(folder, split_bytes=split_bytes)
    return tuple(outputs), folder


def _tensors(
    drawn: Drawn, fusing: Fusing, cache: CacheRule, joint: Mapping[str, tuple[str, ...]]
) -> Iterator[tuple[OutputTensor, tuple[Entry, ...]]]:
    shares = _shares(drawn, fusing)
    caches = dict(_caches(drawn, cache)) if drawn.kv else {}
    for tensor in drawn.source.tensors:
        linear = drawn.linears.get(tensor.name)
        if linear is None:
            yield _float(tensor, drawn.float_type)
        else:
            held = [drawn.linears[name] for name in joint.get(tensor.name, ())]
            yield _quantized(drawn, tensor, linear, shares.get(tensor.name, ()), held)
            assert drawn.container is not None
            for one in drawn.container.inputs(linear, tensor.name):
                yield _measured(one, stored=True)
            columns = drawn.container.columns(linear, tensor.role, drawn.float_type)
            if columns is not None:
                yield _columns(columns, tensor.name)
        for one in caches.get(tensor.name, ()):
            yield _measured(one, stored=cache.stored)


def _float(tensor: SourceTensor, dtype: Dtype) -> tuple[OutputTensor, tuple[Entry, ...]]:
    entry = Entry(tensor.name, dtype, tensor.shape)
    return OutputTensor(tensor.name, tensor.shape, None, dtype, entry.nbytes, tensor), (entry,)


def _quantized(
    drawn: Drawn,
    tensor: SourceTensor,
    linear: Linear,
    shares: tuple[str, ...],
    held: Sequence[Linear],  # whose joint numbers lie beside this one
) -> tuple[OutputTensor, tuple[Entry, ...]]:
    assert drawn.container is not None
    numbers = [drawn.container.joint(one) for one in held]
    entries = (
        *drawn.container.entries(linear, drawn.float_type),
        *(one.entry for one in numbers if one is not None),
    )
    scheme = linear.scheme
    output = OutputTensor(
        name=tensor.name,
        shape=tensor.shape,
        grid=scheme.grid,
        dtype=scheme.name,
        nbytes=sum(entry.nbytes for entry in entries),
        source=tensor,
        shares=shares,
        input_rounding=rounding_of(scheme),
    )
    return output, entries


def _measured(one: Measured, *, stored: bool) -> tuple[OutputTensor, tuple[Entry, ...]]:
    entry = one.entry
    kept = (entry,) if stored else ()
    nbytes = sum(one.nbytes for one in kept)
    output = OutputTensor(
        entry.name, entry.shape, None, "F32", nbytes, None, statistic=one.statistic
    )
    return output, kept


def _columns(entry: Entry, weight: str) -> tuple[OutputTensor, tuple[Entry, ...]]:
    output = OutputTensor(
        entry.name, entry.shape, None, entry.dtype, entry.nbytes, None, column_scale=weight
    )
    return output, (entry,)


def _shares(drawn: Drawn, fusing: Fusing) -> dict[str, tuple[str, ...]]:
    """Weight -> the weights that have one scale with it, where its scheme has such a scale."""
    found = {}
    for names in _together(drawn, fusing):
        for name in names:
            scheme = drawn.linears[name].scheme
            if scheme.shared:
                found[name] = (name,) if scheme.alone else names
    return found


def _joint(drawn: Drawn, fusing: Fusing) -> dict[str, tuple[str, ...]]:
    """As `FolderPlan.joint`."""
    if drawn.container is None:
        return {}
    return {
        names[-1]: names
        for names in _together(drawn, fusing)
        if drawn.container.joint(drawn.linears[names[-1]]) is not None
    }


def _together(drawn: Drawn, fusing: Fusing) -> Iterator[tuple[str, ...]]:
    """Weights that a program holds as one linear, in the order of the source."""
    linears = [one for one in drawn.source.tensors if one.name in drawn.linears]
    for one in joined(drawn.source, linears, fusing):
        yield tuple(member.name for member in one.members)


def _caches(drawn: Drawn, cache: CacheRule) -> Iterator[tuple[str, tuple[Measured, ...]]]:
    """The weight of v in each block -> what is measured of the block's cache."""
    found: dict[int, dict[str, SourceTensor]] = {}
    for one in drawn.source.tensors:
        if one.block is not None and one.part == "weight":
            found.setdefault(one.block, {})[one.role] = one
    for roles in found.values():
        key = roles.get("attn_k") or roles["attn_qkv"]
        value = roles.get("attn_v") or roles["attn_qkv"]
        measured = cache.measured(
            drawn.container, (module_of(key), module_of(value)), (key.name, value.name),
            drawn.kv or "",
        )  # fmt: skip
        if not measured:
            name = drawn.container.name if drawn.container else "this folder"
            raise refuse(f"{name} has no place for scales of the KV cache",
                         "--container compressed-tensors, or leave out --kv")  # fmt: skip
        yield value.name, measured
