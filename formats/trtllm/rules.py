"""Rules of TensorRT-LLM's loader: where in a folder it would fail, or read something else.

Our restatement of NVIDIA's code, not that code: see `methods.py`, `told.py` and `linears.py` for
what was read. A folder that breaks none of them has not been loaded by TensorRT-LLM.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qconvert.formats.checkpoint_files import read_json_object, stored_tensors
from qconvert.formats.refusal import Reason
from qconvert.formats.safetensors_header import Entry
from qconvert.formats.trtllm.linears import Fused, Member, fused_linears
from qconvert.formats.trtllm.methods import FLOATS, METHODS, UNRESTATED, Method, Stored
from qconvert.formats.trtllm.told import AGAIN, CONFIG, MIXED, Quantization, differences, told

CACHES = (None, "FP8", "NVFP4")
COLUMNS = "pre_quant_scale"
OF_CACHE = ("k_scale", "v_scale")
NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}

Parts = Mapping[str, Entry]


@dataclass(frozen=True, slots=True)
class Broken:
    """A rule that a folder breaks."""

    rule: str  # "required", "type", "shape", "equal", "multiple", "parallel", ...
    where: str  # a file, or a module
    why: str
    silent: bool = False  # the loader goes on without a word, and computes something else

    def reason(self) -> Reason:
        return Reason(f"{self.where}: {self.why}{', and nothing is said' if self.silent else ''}")


@dataclass(frozen=True, slots=True)
class _Folder:
    told: Quantization
    stored: Parts
    float_type: str  # of the model
    tp: int

    def parts(self, module: str) -> dict[str, Entry]:
        names = ("weight", "bias", "weight_scale", "weight_scale_2", "weight_scale_inv",
                 "input_scale", COLUMNS, *OF_CACHE, "weight_zero_point")  # fmt: skip
        found = {part: self.stored.get(f"{module}.{part}") for part in names}
        return {part: entry for part, entry in found.items() if entry is not None}


def broken_rules(folder: Path, tp: int = 1) -> list[Broken]:
    """All that `folder` breaks, loaded by `tp` ranks of tensor parallelism. Configuration, headers
    and single numbers are read, no weights. `Refused` where a file cannot be read."""
    config = read_json_object(folder / CONFIG, AGAIN)
    stored = stored_tensors(folder)
    said = told(folder, config)
    if said is None:
        return [Broken("configuration", CONFIG, "no quantization in ModelOpt's form is told of")]
    linears = fused_linears(config, stored)
    if not linears:
        return [Broken("model", CONFIG, "not a decoder whose linears are known here")]
    float_type = NAMES.get(str(config.get("dtype") or config.get("torch_dtype")), "BF16")
    one = _Folder(said, stored, float_type, tp)
    found = [Broken("differ", CONFIG, f"{what} is not as in {said.file}, which counts")
             for what in differences(folder, config)]  # fmt: skip
    found += _of_configuration(said)
    for fused in linears:
        found += _of_linear(one, fused)
    return [*found, *_of_names(one, linears)]


def _of_configuration(said: Quantization) -> Iterator[Broken]:
    if said.cache not in CACHES:
        yield Broken("cache", said.file, f"a KV cache in {said.cache} is unknown")
    if said.zero_points:
        yield Broken("zero points", said.file, "no kernel is given zero points", silent=True)
    algorithms: dict[Any, None] = {said.algorithm: None}
    if said.algorithm == MIXED:
        algorithms = {one.get("quant_algo"): None for one in said.layers.values()}
        if not said.layers:
            yield Broken("mixed", said.file, "quantized_layers is missing or empty")
    for name in algorithms:
        if name in UNRESTATED:
            yield Broken("algorithm", said.file, f"the rules of {name} are not known here")
        elif name is not None and name not in METHODS:
            yield Broken("algorithm", said.file, f"{name} has no linear method")


def _of_linear(folder: _Folder, fused: Fused) -> Iterator[Broken]:
    algorithm, group = folder.told.of(fused)
    members = {one.module: folder.parts(one.module) for one in fused.members}
    yield from _told_alike(folder.told, fused)
    for name, parts in members.items():
        if "weight" not in parts:
            yield Broken("required", name, "weight is missing")
    yield from _together("bias", fused, members)
    yield from _of_cache(folder, fused, algorithm, members)
    shard = fused.shard(folder.tp)
    if shard is None:
        yield Broken("parallel", fused.name, f"does not come apart for {folder.tp} ranks")
    if algorithm is None:
        for one in fused.members:
            yield from _float(one, members[one.module])
    elif algorithm in METHODS:
        method = METHODS[algorithm]
        if method.groups and group not in method.groups:
            known = " or ".join(map(str, method.groups))
            yield Broken("groups", fused.name, f"groups of {group}: kernels take {known}")
            return
        size = group if method.groups else method.group
        for one in fused.members:
            yield from _of_member(folder, fused, one, method, size, members[one.module])
        yield from _joined(fused, method, members)
        yield from _followed(fused, method, folder.tp)
        if shard is not None:
            yield from _multiples(folder, fused, method, size, *shard)


def _told_alike(said: Quantization, fused: Fused) -> Iterator[Broken]:
    names = [one.module for one in fused.members]
    if len({said.excludes(name) for name in names}) > 1:
        yield Broken("mixed", fused.name, "one is excluded, and so all are", silent=True)
    elif said.algorithm == MIXED and len({repr(said.layers.get(name)) for name in names}) > 1:
        yield Broken("mixed", fused.name, "quantized_layers tells them apart, and the first"
                     " counts for all", silent=True)  # fmt: skip


def _together(part: str, fused: Fused, members: Mapping[str, Parts]) -> Iterator[Broken]:
    having = [name for name, parts in members.items() if part in parts]
    if 0 < len(having) < len(members):
        yield Broken("together", fused.name, f"{part} is there of {', '.join(having)} alone",
                     silent=part != "bias")  # fmt: skip


def _float(one: Member, parts: Parts) -> Iterator[Broken]:
    weight = parts.get("weight")
    if weight is not None:
        wanted = Stored(FLOATS, lambda rows, cols, group: ((rows, cols),))
        yield from _of_entry(one, "weight", weight, wanted, 1)
    for part in sorted(parts.keys() - {"weight", "bias", *OF_CACHE}):
        yield Broken("ignored", one.module, f"{part} is there, and nothing says that it is"
                     " quantized", silent=True)  # fmt: skip


def _of_member(
    folder: _Folder, fused: Fused, one: Member, method: Method, group: int, parts: Parts
) -> Iterator[Broken]:
    if folder.float_type not in method.floats:
        yield Broken("model type", one.module, f"its method takes models in"
                     f" {' or '.join(method.floats)}, not {folder.float_type}")  # fmt: skip
    known = {"weight", "bias", *OF_CACHE, *method.parts, *method.together}
    for part, wanted in method.parts.items():
        stored = f"{part}_inv" if method.inverse and f"{part}_inv" in parts else part
        known.add(stored)
        if stored in parts:
            yield from _of_entry(one, stored, parts[stored], wanted, group)
        elif part != "weight":
            yield Broken("required", one.module, f"{part} is missing", silent=wanted.silent)
    columns = method.columns[fused.kind]
    if columns == "wanted" and COLUMNS not in parts:
        yield Broken("required", one.module, f"{COLUMNS} is missing")
    if columns != "ignored":
        known.add(COLUMNS)
        types = (folder.float_type,) if method.columns_like_model else FLOATS
        vector = Stored(types, lambda rows, cols, group: ((cols,),), asserted=True)
        if COLUMNS in parts:
            yield from _of_entry(one, COLUMNS, parts[COLUMNS], vector, group)
    for part in sorted(parts.keys() - known):
        yield Broken("ignored", one.module, f"{part} is read by nothing", silent=True)


def _of_entry(one: Member, part: str, entry: Entry, wanted: Stored, group: int) -> Iterator[Broken]:
    if entry.dtype not in wanted.dtypes:
        known = " or ".join(wanted.dtypes)
        yield Broken("type", one.module, f"{part} is {entry.dtype}, not {known}",
                     silent=not wanted.asserted)  # fmt: skip
    shapes = wanted.shapes(one.rows, one.cols, group)
    if entry.shape not in shapes:
        yield Broken("shape", one.module, f"{part} is {list(entry.shape)}, not {list(shapes[0])}")


def _joined(fused: Fused, method: Method, members: Mapping[str, Parts]) -> Iterator[Broken]:
    for part in method.together:
        yield from _together(part, fused, members)
    taken = (COLUMNS,) if method.columns[fused.kind] == "taken" else ()
    for part in (*method.equal, *taken):
        held = {_bytes(parts[part]) for parts in members.values() if part in parts}
        if len(held) > 1:
            yield Broken("equal", fused.name, f"{part} differs between them", part in taken)
    if taken:
        yield from _together(COLUMNS, fused, members)


def _followed(fused: Fused, method: Method, tp: int) -> Iterator[Broken]:
    if not method.follows and fused.stored_joined:
        yield Broken("joined", fused.name, "stored as one, it is taken apart when it is loaded,"
                     " without its scales")  # fmt: skip
    if not method.follows and fused.repeats(tp):
        yield Broken("parallel", fused.name, f"{tp} ranks repeat heads of keys and values, and not"
                     " their scales")  # fmt: skip


def _bytes(entry: Entry) -> bytes:
    with entry.path.open("rb") as file:
        file.seek(entry.offset)
        return file.read(entry.nbytes)


def _multiples(
    folder: _Folder, fused: Fused, method: Method, group: int, cols: int, rows: Sequence[int]
) -> Iterator[Broken]:
    """Per rank; groups are whole in each."""
    of = f" of each of {folder.tp} ranks" if folder.tp > 1 else ""
    for count, size, what in (
        (cols, group, "inputs"), (cols, method.cols, "inputs"), (sum(rows), method.rows, "outputs"),
        *((part, method.each, "outputs of one linear") for part in rows),
    ):  # fmt: skip
        if count % size:
            yield Broken("multiple", fused.name, f"{count} {what}{of}, no multiple of {size}")
            return


def _of_cache(
    folder: _Folder, fused: Fused, algorithm: str | None, members: Mapping[str, Parts]
) -> Iterator[Broken]:
    held = [part for parts in members.values() for part in OF_CACHE if part in parts]
    if not held:
        return
    if len(set(held)) == 1:
        yield Broken("cache", fused.name, f"{held[0]} alone; both scales are loaded together")
    method = METHODS.get(algorithm or "")
    reads = folder.told.cache == "NVFP4" if method is None else method.cache
    if folder.told.cache is None:
        yield Broken("cache", fused.name, "scales of a KV cache that nothing switches on", True)
    elif not reads or fused.kind != "qkv":
        yield Broken("cache", fused.name, "scales of the KV cache are not read beside"
                     f" {algorithm or 'float weights'}", silent=True)  # fmt: skip


def _of_names(folder: _Folder, linears: Sequence[Fused]) -> Iterator[Broken]:
    known = {one.module for fused in linears for one in fused.members}
    looked_up = {fused.looked_up for fused in linears}
    for name in folder.told.layers:
        if name not in known | looked_up:
            yield Broken("mixed", folder.told.file, f"quantized_layers names {name}, which is no"
                         " linear of the model", silent=True)  # fmt: skip
    for name, entry in folder.stored.items():
        if name.rpartition(".")[0] not in known and entry.dtype not in FLOATS:
            yield Broken("type", name, f"is {entry.dtype}: only linears of blocks are quantized",
                         silent=True)  # fmt: skip
