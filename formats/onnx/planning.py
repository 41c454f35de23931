"""From kinds to the tensors and files of a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from qconvert.formats.onnx.choice import Choice
from qconvert.formats.onnx.contrib import Contrib
from qconvert.formats.onnx.dialect import Dialect
from qconvert.formats.onnx.drawing import Drawing, offsets
from qconvert.formats.onnx.genai import CONFIG, genai_config
from qconvert.formats.onnx.graph import draw, model_bytes
from qconvert.formats.onnx.kinds import FLOATS, Kind
from qconvert.formats.onnx.matrices import matrices, name_of_head
from qconvert.formats.onnx.model import Model
from qconvert.formats.onnx.standard import Standard
from qconvert.formats.onnx.stores import CodeColumns, CodeRows
from qconvert.formats.onnx.tokenizer import NAME, respelled, tokenizer_notes
from qconvert.formats.onnx.writer import Folder, overhead
from qconvert.formats.serving.fused import module_of
from qconvert.formats.serving.model_files import copied_files, file_notes
from qconvert.formats.source import Source, SourceTensor
from qconvert.formats.target import OutputTensor, Plan

STORED = "F32"  # what is not quantized
Coded = CodeRows | CodeColumns

FORMS: Mapping[str, Callable[[], Dialect]] = {"matmulnbits": Contrib, "qdq": Standard}


def plan_folder(target: str, source: Source, model: Model, choice: Choice, form: str) -> Plan:
    """The plan, with the whole graph in it."""
    dialect = FORMS[form]()
    drawing = draw(model, matrices(source, model, choice, joins=dialect.joins), dialect)
    folder = _folder(source, model, drawing, dialect)
    tensors = tuple(_tensors(source, model, choice, folder))
    stored = sum(one.nbytes for one in tensors)
    main, *others = choice.type.split(",")
    name = [source.folder.resolve().name, main, *(["mixed"] if others else [])]
    return Plan(
        target=target,
        type=choice.type,
        tensors=tensors,
        default_name="-".join([*name, "onnx"]),
        notes=(
            *model.notes,
            *choice.notes,
            *_notes(tensors, folder),
            *file_notes(copied_files(source)),
            *tokenizer_notes(source.folder / NAME),
        ),
        overhead_bytes=overhead(folder, stored),
        details={
            "onnx": folder,
            "gathers": any(one.whole for found in folder.stores.values() for one in found),
        },
    )


def _notes(tensors: Sequence[OutputTensor], folder: Folder) -> Iterator[str]:
    """Where the form takes more room than the codes need."""
    coded = {one.name: [store for store in folder.stores[one.name] if isinstance(store, Coded)]
             for one in tensors}  # fmt: skip
    fields = {(one.kind.bits, one.field) for found in coded.values() for one in found}
    for bits, field in sorted(fields):
        if field > bits:
            yield f"codes of {bits} bits are stored in fields of {field}: no kernel has fewer"
    for one in tensors:
        if sum(store.part.count for store in coded[one.name]) > one.shape[0]:
            yield f"{one.name} is stored twice: as it is looked up, and as it is multiplied with"


def _folder(source: Source, model: Model, drawing: Drawing, dialect: Dialect) -> Folder:
    places, size = offsets(drawing.regions)
    copies = copied_files(source)
    tokenizer = respelled(source.folder / NAME)
    spelt = {} if tokenizer is None else {NAME: tokenizer}
    return Folder(
        stores={name: tuple(stores) for name, stores in drawing.stores.items()},
        regions={name: (places[name], nbytes) for name, nbytes in drawing.regions.items()},
        size=size,
        tables=drawing.tables,
        positions=model.context,
        files={
            CONFIG: genai_config(source, model, shares_buffer=dialect.shares_buffer),
            "model.onnx": model_bytes(model, drawing, dialect),
            **spelt,
        },
        copies={name: path for name, path in copies.items() if name not in spelt},
    )


def _tensors(
    source: Source, model: Model, choice: Choice, folder: Folder
) -> Iterator[OutputTensor]:
    """Those of the source in its order; of a tied head with a kind of its own, the head last."""
    for one in source.tensors:
        kind = choice.kinds.get(module_of(one), FLOATS) if one.part == "weight" else FLOATS
        made = _tensor(one, one.name, kind, folder)
        norm = len(one.shape) == 1 and one.part == "weight"
        yield replace(made, add=model.arch.norm_offset) if norm else made
    name = name_of_head(source, choice)
    if source.tied and choice.apart:
        table = next(one for one in source.tensors if one.role == "embedding")
        yield _tensor(table, name, choice.kinds[choice.head], folder)


def _tensor(source: SourceTensor, name: str, kind: Kind, folder: Folder) -> OutputTensor:
    return OutputTensor(
        name=name,
        shape=source.shape,
        grid=kind.grid,
        dtype=kind.name if kind.bits else STORED,
        nbytes=sum(store.nbytes for store in folder.stores[name]),
        source=source,
    )
