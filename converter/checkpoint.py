"""A Hugging Face folder on disk: facts from headers at once, weights by rows on request."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from qconvert.config import TextConfig, read_config
from qconvert.formats.checkpoint_files import stored_tensors
from qconvert.formats.refusal import Reason, Refused, collecting, raise_if_any, refuse
from qconvert.formats.safetensors_header import Entry
from qconvert.formats.source import Dtype, SourceTensor
from qconvert.models import PREFIXES, Expected, pattern

FLOATS: dict[Dtype, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),  # numpy has no bfloat16: the upper half of a float32
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`formats.source.Source` of a folder. Tensors carry the names under which the model class
    saves them, also where this file leaves out or adds a prefix."""

    folder: Path
    config: Mapping[str, Any]
    model_type: str
    tied: bool
    tensors: tuple[SourceTensor, ...]
    notes: tuple[str, ...]  # one line each: what was left out, what differs from the config
    _stored: Mapping[str, Entry] = field(repr=False)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the weights are read from."""
        return tuple(sorted({entry.path for entry in self._stored.values()}))

    def rows(self, tensor: SourceTensor, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop) as float32; vectors count as one row, [n].

        Reads just these bytes (a transposed tensor: all of it). `Refused`, naming the tensor, when
        a value is NaN or infinite, or the file no longer holds what its header promised.
        """
        entry = self._stored[tensor.name]
        if tensor.transposed:
            whole = _read(entry, 0, entry.nbytes).reshape(entry.shape)
            raw = np.ascontiguousarray(whole[:, start:stop].T)
        elif len(tensor.shape) == 1:
            raw = _read(entry, 0, entry.nbytes)
        else:
            row = entry.nbytes // tensor.shape[0]
            raw = _read(entry, start * row, stop * row).reshape(stop - start, *tensor.shape[1:])
        values = as_float32(raw, tensor.dtype)
        _check_finite(values, tensor)
        return values


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read config.json and all headers of `folder`; `Refused` with everything that is wrong."""
    if not folder.is_dir():
        raise _no_folder(folder)
    reasons: list[Reason] = []
    config, stored = None, None
    with collecting(reasons):
        config = read_config(folder)
    with collecting(reasons):
        stored = stored_tensors(folder)
    raise_if_any(reasons)
    assert config is not None
    assert stored is not None
    return _matched(folder, config, stored)


def _no_folder(folder: Path) -> Refused:
    if folder.exists():
        return refuse(f"{folder} is not a folder", "give the folder that holds config.json")
    return refuse(
        f"no such folder: {folder}",
        "models are read from disk; fetch one first, for example with `hf download NAME "
        "--local-dir FOLDER`",
    )


def _matched(folder: Path, config: TextConfig, stored: Mapping[str, Entry]) -> Checkpoint:
    """The checkpoint, when what is stored is what the configuration describes."""
    found, notes, reasons = _own_tensors(config, stored)
    tied, tie_notes = _tied(config, found)
    notes += tie_notes
    head = f"{config.family.head.path}.weight"
    if tied:
        found.pop(head, None)
    expected = list(config.family.expected(config.fields, head=not tied))
    reasons += _missing(expected, found, head)
    reasons += _unexpected(config, found, {tensor.name for tensor in expected})
    places, tensors = {}, []
    faults: defaultdict[Fault, list[str]] = defaultdict(list)  # names of the tensors that have it
    for want in expected:
        entry = found.get(want.name)
        if entry is None:
            continue
        for fault in _faults(want, entry):
            faults[fault].append(entry.name)
        if _is_float(entry.dtype):
            places[want.full_name] = entry
            tensors.append(
                SourceTensor(
                    want.full_name,
                    want.role,
                    want.part,
                    want.block,
                    want.shape,
                    entry.dtype,
                    want.transposed,
                )
            )
    raise_if_any([*reasons, *(fault.reason(names) for fault, names in faults.items())])
    fields = {**config.fields, "tie_word_embeddings": tied}
    return Checkpoint(folder, fields, config.model_type, tied, tuple(tensors), tuple(notes), places)


def _own_tensors(
    config: TextConfig, stored: Mapping[str, Entry]
) -> tuple[dict[str, Entry], list[str], list[Reason]]:
    """Stored tensors under their names without prefix, less those that hold no text weights."""
    found: dict[str, Entry] = {}
    dropped: Counter[str] = Counter()
    reasons = []
    for name, entry in stored.items():
        other = next((p for p in config.dropped if fnmatchcase(name, p)), None)
        if other is not None:
            dropped[other] += 1
            continue
        bare = _without_prefix(name)
        if any(fnmatchcase(bare, p) for p in config.family.ignored):
            continue
        if bare in found:
            reasons.append(Reason(f"{name} and {found[bare].name} are the same tensor"))
        found[bare] = entry
    notes = [
        f"left out, not part of the text model: {count} tensors {p}" for p, count in dropped.items()
    ]
    return found, notes, reasons


def _without_prefix(name: str) -> str:
    while prefix := next((p for p in PREFIXES if name.startswith(p)), None):
        name = name.removeprefix(prefix)
    return name


def _tied(config: TextConfig, found: Mapping[str, Entry]) -> tuple[bool, list[str]]:
    """Whether the head is the embedding. As transformers 5 does it (`tie_weights`): when both are
    stored, what they hold decides."""
    if not config.fields.get("tie_word_embeddings"):
        return False, []
    head = found.get(f"{config.family.head.path}.weight")
    embedding = found.get(f"{config.family.before[0].path}.weight")
    if head is None or embedding is None or _same_bytes(head, embedding):
        return True, []
    return False, ["config.json ties the head to the embedding, but the stored head differs: kept"]


def _same_bytes(one: Entry, other: Entry, step: int = 1 << 24) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    spans = ((at, min(at + step, one.nbytes)) for at in range(0, one.nbytes, step))
    return all(np.array_equal(_bytes(one, *span), _bytes(other, *span)) for span in spans)


def _missing(expected: list[Expected], found: Mapping[str, Entry], head: str) -> list[Reason]:
    absent = [tensor.full_name for tensor in expected if tensor.name not in found]
    if not absent:
        return []
    remedy = "the folder is incomplete, or config.json belongs to another model"
    if absent == [head]:
        remedy = 'set "tie_word_embeddings": true in config.json if the head is the embedding'
    return [Reason(f"missing from the checkpoint: {_listed(absent)}", remedy)]


def _unexpected(config: TextConfig, found: Mapping[str, Entry], expected: set[str]) -> list[Reason]:
    extra = [entry.name for bare, entry in found.items() if bare not in expected]
    if not extra:
        return []
    return [
        Reason(
            f"not part of a {config.model_type} model as config.json describes it: "
            f"{_listed(extra)}",
            f"check num_hidden_layers ({config.fields['num_hidden_layers']}) and the *_bias flags "
            "in config.json; adapters must be merged first",
        )
    ]


def _listed(names: list[str], most: int = 6) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a tensor, perhaps alike in every block."""

    pattern: str  # "model.layers.*.mlp.up_proj.weight"
    problem: str
    remedy: str

    def reason(self, names: list[str]) -> Reason:
        where = names[0] if len(names) == 1 else f"{self.pattern} ({len(names)} tensors)"
        return Reason(f"{where} {self.problem}", self.remedy)


def _faults(want: Expected, entry: Entry) -> list[Fault]:
    faults = []
    shape = want.shape[::-1] if want.transposed else want.shape
    if entry.shape != shape:
        problem = f"has the shape {list(entry.shape)}; config.json asks for {list(shape)}"
        remedy = "config.json and the weights belong to different models"
        faults.append(Fault(pattern(entry.name), problem, remedy))
    if not _is_float(entry.dtype):
        remedy = f"start from a checkpoint in {', '.join(FLOATS)}"
        faults.append(Fault(pattern(entry.name), f"is stored as {entry.dtype}", remedy))
    return faults


def _is_float(dtype: str) -> TypeGuard[Dtype]:
    return dtype in FLOATS


def _bytes(entry: Entry, start: int, stop: int) -> NDArray[np.uint8]:
    """Bytes [start, stop) of a tensor, by a positioned read: nothing of the file stays mapped."""
    buffer = np.empty(stop - start, np.uint8)
    view, done = buffer.data, 0
    try:
        with entry.path.open("rb", buffering=0) as file:
            file.seek(entry.offset + start)
            while done < len(view):
                got = file.readinto(view[done:])
                if not got:
                    raise refuse(f"{entry.path.name} became shorter while it was read")
                done += got
    except OSError as fault:
        raise refuse(f"{entry.path} cannot be read: {fault.strerror}") from fault
    return buffer


def _read(entry: Entry, start: int, stop: int) -> NDArray[Any]:
    assert _is_float(entry.dtype)
    return _bytes(entry, start, stop).view(FLOATS[entry.dtype])


def as_float32(raw: NDArray[Any], dtype: Dtype) -> NDArray[np.float32]:
    """The values of `raw`, stored as `dtype`; bfloat16 comes as uint16 bits."""
    if dtype == "BF16":
        wide = raw.astype(np.uint32)
        np.left_shift(wide, 16, out=wide)
        return wide.view(np.float32)
    return np.asarray(raw, np.float32)


def _check_finite(values: NDArray[np.float32], tensor: SourceTensor) -> None:
    # The sum is finite unless a value is not, or it overflows: only then is each value looked at.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(values.sum()):
            return
    if not np.isfinite(values).all():
        kind = "NaN" if np.isnan(values).any() else "infinite"
        raise refuse(
            f"{tensor.name} holds {kind} values", "the checkpoint is damaged: download it again"
        )
