"""How the tensors of a folder are cut into files.

Names and index as transformers' `save_pretrained` writes them: `model.safetensors`, or
`model-00001-of-0000N.safetensors` and `model.safetensors.index.json`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from qconvert.formats.checkpoint_files import INDEX, SINGLE
from qconvert.formats.refusal import refuse
from qconvert.formats.serving.container import Entry, FolderPlan
from qconvert.formats.serving.folder.header import Placed, place, room
from qconvert.formats.target import OutputTensor, Plan

MAX_FILES = 99_999  # five digits
_BESIDE = len(place(()).header) + 8  # header of no tensors, and what fills it up


@dataclass(frozen=True, slots=True)
class Shard:
    """One file and the output tensors in it. All that is stored of a tensor is in one file."""

    name: str
    tensors: tuple[OutputTensor, ...]
    entries: tuple[Entry, ...]
    placed: Placed


def folder_of(plan: Plan) -> FolderPlan:
    folder = plan.details["folder"]
    assert isinstance(folder, FolderPlan)
    return folder


def plan_shards(plan: Plan) -> tuple[Shard, ...]:
    """Files of at most `split_bytes`, headers included, in the order of the plan. A tensor that is
    larger has a file of its own, as with `save_pretrained`."""
    folder = folder_of(plan)
    cut = _cut(plan.tensors, folder)
    if len(cut) > MAX_FILES:
        raise refuse(f"{len(cut)} files: at most {MAX_FILES} are possible", "allow larger files")
    shards = []
    for number, tensors in enumerate(cut, 1):
        name = SINGLE if len(cut) == 1 else f"model-{number:05d}-of-{len(cut):05d}.safetensors"
        entries = tuple(entry for tensor in tensors for entry in folder.entries[tensor.name])
        shards.append(Shard(name, tuple(tensors), entries, place(entries)))
    return tuple(shards)


def _cut(tensors: Sequence[OutputTensor], folder: FolderPlan) -> list[list[OutputTensor]]:
    cut: list[list[OutputTensor]] = [[]]
    size = _BESIDE
    for tensor in tensors:
        need = sum(room(entry) for entry in folder.entries[tensor.name])
        if size > _BESIDE and size + need > folder.split_bytes:
            cut.append([])
            size = _BESIDE
        cut[-1].append(tensor)
        size += need
    return cut


def index_json(shards: Sequence[Shard]) -> bytes:
    """The file that says in which of `shards` each tensor is."""
    places = {entry.name: shard.name for shard in shards for entry in shard.entries}
    total = sum(entry.nbytes for shard in shards for entry in shard.entries)
    fields = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    return (json.dumps(fields, indent=2, ensure_ascii=False) + "\n").encode()


def written_files(plan: Plan) -> dict[str, int]:
    """Name -> size of every file of a folder; 0 for files that are made of measured numbers."""
    folder, shards = folder_of(plan), plan_shards(plan)
    index = {INDEX: len(index_json(shards))} if len(shards) > 1 else {}
    return {
        **{shard.name: shard.placed.size for shard in shards},
        **index,
        **{name: len(content) for name, content in folder.files.items()},
        **{name: path.stat().st_size for name, path in folder.copies.items()},
        **dict.fromkeys(folder.made, 0),
    }
