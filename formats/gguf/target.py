"""The GGUF target: a plan of tensors and metadata for llama.cpp, its writer and its reader."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from gguf.constants import GGMLQuantizationType

from qconvert.formats.gguf import mixes
from qconvert.formats.gguf.grids import GRIDS
from qconvert.formats.gguf.header import tensor_bytes
from qconvert.formats.gguf.layout import Placed
from qconvert.formats.gguf.metadata import general_entries, model_entries
from qconvert.formats.gguf.mixes import MIXES, Mix, choose_mix, choose_type
from qconvert.formats.gguf.model import Model, read_model
from qconvert.formats.gguf.reader import looks_like_gguf, open_reader
from qconvert.formats.gguf.shards import plan_shards, shard_paths
from qconvert.formats.gguf.vocab import Vocabulary, read_vocabulary
from qconvert.formats.gguf.writer import open_writer
from qconvert.formats.refusal import Reason, collecting, raise_if_any, refuse
from qconvert.formats.source import Source
from qconvert.formats.target import OutputTensor, Plan, Reader, Request, Sink


class GgufTarget:
    """`formats.target.Target` for llama.cpp and everything else that reads GGUF."""

    name = "gguf"
    summary = "GGUF files for llama.cpp, ollama, LM Studio and other ggml programs"
    takes = frozenset({"bits", "type", "split_bytes"})
    folder = False
    types: Sequence[tuple[str, str]] = tuple((mix.name, mix.summary) for mix in MIXES.values())

    def plan(self, source: Source, request: Request) -> Plan:
        """Every tensor's type, the whole header and its size; `Refused` with all reasons."""
        reasons: list[Reason] = []
        mix, model, vocabulary = None, None, None
        with collecting(reasons):
            mix = choose_mix(request, _half(source))
        with collecting(reasons):
            model = read_model(source)
        with collecting(reasons):
            vocabulary = _vocabulary(source)
        raise_if_any(reasons)
        assert mix is not None
        assert model is not None
        assert vocabulary is not None
        return _plan(source, request, mix, model, vocabulary)

    def writer(self, plan: Plan, path: Path) -> AbstractContextManager[Sink]:
        return open_writer(plan, path)

    def outputs(self, plan: Plan, path: Path) -> tuple[Path, ...]:
        return shard_paths(path, len(plan.details["shards"]))

    def recognises(self, path: Path) -> bool:
        return looks_like_gguf(path)

    def reader(self, path: Path) -> Reader:
        return open_reader(path)


TARGET = GgufTarget()


def _half(source: Source) -> str:
    """The 16-bit float that loses nothing of the source, bfloat16 where neither does."""
    return "F16" if {tensor.dtype for tensor in source.tensors} == {"F16"} else "BF16"


def _vocabulary(source: Source) -> Vocabulary:
    """The tokenizer; `Refused` unless it has a token for every row of the embedding."""
    found = read_vocabulary(source.folder, source.config)
    rows = next(t.shape[0] for t in source.tensors if t.role == "embedding")
    if found.size != rows:
        raise refuse(f"the tokenizer has {found.size} tokens, the embedding {rows} rows")
    return found


def _plan(source: Source, request: Request, mix: Mix, model: Model, vocabulary: Vocabulary) -> Plan:
    facts = mixes.Model(
        blocks=model.sizes.blocks,
        grouped=model.sizes.grouped,
        tied=not any(placed.category == "head" for placed in model.tensors),
        wide=model.sizes.is_wide(model.arch),
    )
    tensors = tuple(_output(placed, mix, facts) for placed in model.tensors)
    entries = (
        *general_entries(source, model.arch, mix, vocabulary),
        *model_entries(model.arch, model.sizes, model.rope),
        *vocabulary.entries,
    )
    shards = plan_shards(entries, tensors, request.split_bytes)
    size = sum(shard.size for shard in shards)
    return Plan(
        target=TARGET.name,
        type=mix.name,
        tensors=tensors,
        default_name=f"{source.folder.resolve().name}-{mix.name}.gguf",
        notes=(*model.notes, *vocabulary.notes, *_fallback_notes(tensors)),
        overhead_bytes=size - sum(tensor.nbytes for tensor in tensors),
        details={"entries": entries, "shards": shards},
    )


def _output(placed: Placed, mix: Mix, facts: mixes.Model) -> OutputTensor:
    kind, note = choose_type(mix, facts, placed.category, placed.block, placed.shape)
    return OutputTensor(
        name=placed.name,
        shape=placed.shape,
        grid=None if kind in mixes.FLOATS else GRIDS[kind],
        dtype=kind,
        nbytes=tensor_bytes(placed.shape, GGMLQuantizationType[kind]),
        source=placed.source,
        values=placed.values,
        row_order=placed.row_order,
        add=placed.add,
        note=note,
    )


def _fallback_notes(tensors: Sequence[OutputTensor]) -> tuple[str, ...]:
    counts = Counter(tensor.note for tensor in tensors if tensor.note)
    return tuple(f"{count} tensors: {note}" for note, count in counts.items())
