"""The work folder of one calibrated conversion: what is finished stays, whatever happens.

    job.json              what the job is, and what guards a resume (`journal`)
    lock                  held by the one process at work, with its number
    source/NAME/          configuration, tokenizer and chat templates of the model
    tokens.npy            the calibration rows
    rows/00007.quant      hidden states entering block 7; a cache, retired when it is passed; those
                          of 00007.float are of the model in float
    blocks/00007.safetensors, outer/before.safetensors, outer/after.safetensors
                          finished parts (`parts`), each there as a whole or not at all
    outer/after.json      what there is to tell of the optimised tensors in that part

Any part may be deleted: it is then made again.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qconvert.engine.aside import Lock, aside, keep, sweep, unwritable
from qconvert.engine.copies import copy_files
from qconvert.engine.fingerprint import differences
from qconvert.engine.folder import FILES, FOLDERS, begun, check_usable, forget
from qconvert.engine.journal import NAME, Journal, encode, forms_of, mismatch, read_journal
from qconvert.engine.parts import FLOAT, PartWriter, Stored, arrays, layout, metadata
from qconvert.engine.record import BlockRecord, LinearRecord
from qconvert.engine.store import Outer, Store, Which
from qconvert.engine.tensorfile import TensorWriter
from qconvert.formats.grid import Grid
from qconvert.formats.refusal import Reason, collecting, raise_if_any
from qconvert.formats.source import Source
from qconvert.formats.target import Plan

Stream = Literal["float", "quant"]


@dataclass(frozen=True, slots=True)
class Work:
    """An open work folder; use it in a `with`, which lets go of its lock."""

    store: Store
    grids: Mapping[str, Grid]  # of the plan, by name
    resumed: bool  # something was there already
    _lock: Lock

    def __enter__(self) -> Work:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let another process work here."""
        self._lock.release()

    @property
    def folder(self) -> Path:
        return self.store.folder

    @property
    def journal(self) -> Journal:
        return self.store.journal

    def done(self, which: Which) -> bool:
        """True when a part is finished: a block by its index, "before" or "after"."""
        return self.store.has(which)

    def valid(self, which: Which) -> bool:
        """True when a part is finished and undamaged."""
        return self.store.valid(which)

    def finished(self) -> tuple[Which, ...]:
        """The parts that are finished; `Refused`, naming each of them that is damaged."""
        found, reasons = [which for which in self.store.parts if self.done(which)], list[Reason]()
        for which in found:
            with collecting(reasons):
                self.store.read(which)
        raise_if_any(reasons)
        return tuple(found)

    def write_block(self, index: int, stored: Stored, record: BlockRecord) -> None:
        """Finish a block. `ValueError` unless it holds exactly what the plan asks for."""
        tensors = self.journal.part(index)
        wanted = {
            (one.name, kind if kind in self.grids else FLOAT)
            for one in tensors
            for kind in self.journal.forms[one.name]
        }
        given = {(name, one.grid) for name, one in stored.quantized.items()}
        given |= {(name, FLOAT) for name in stored.floats}
        if wanted != given or not set(stored.columns) <= set(stored.quantized):
            raise ValueError(f"block {index} is not as planned: {sorted(wanted ^ given)[:4]}")
        self._check_shapes(index, stored)
        content = arrays(stored, {one.name: one.dtype for one in tensors})
        told = metadata(self.journal.digest, {"block": index, "record": asdict(record)})
        with aside(self.store.path(index)) as file:
            writer = TensorWriter(file, {key: form for key, (form, _) in content.items()}, told)
            for key, (_, values) in content.items():
                writer.append(key, values)
            writer.finish()

    def _check_shapes(self, index: int, stored: Stored) -> None:
        for one in self.journal.part(index):
            held = [*(stored.quantized[one.name].shape,)] if one.name in stored.quantized else []
            held += [stored.floats[one.name].shape] if one.name in stored.floats else []
            if any(shape != one.shape for shape in held):
                raise ValueError(f"{one.name} is {held}, not {one.shape}")

    def read_block(self, index: int) -> Stored:
        """A finished block in memory; `Refused` when its file is damaged."""
        return self.store.read(index).whole()

    def record(self, index: int) -> BlockRecord:
        """What was told of a finished block."""
        return self.store.record(index)

    @contextmanager
    def outer(self, which: Outer, *, unchanged: bool = False) -> Iterator[PartWriter]:
        """Write what stands before or after the blocks; finished when the block ends well.

        `unchanged`: its floats are the source's own values, stored in the source's type. Else they
        take float32.
        """
        told = metadata(self.journal.digest, {"part": which})
        with aside(self.store.path(which)) as file:
            tensors = self.journal.part(which)
            writer = PartWriter(
                file, tensors, self.journal.forms, self.grids, told, unchanged=unchanged
            )
            yield writer
            writer.finish()

    def tell_outer(self, which: Outer, records: Sequence[LinearRecord]) -> None:
        """Keep what there is to tell of a part outside the blocks."""
        self.store.keep_told(which, records)

    def rows(self, index: int, stream: Stream) -> Path:
        """Where the hidden states that enter block `index` are kept."""
        return self.folder / "rows" / f"{index:05d}.{stream}"

    def retire_rows(self, before: int, stream: Stream | None = None) -> None:
        """Remove the hidden states of all blocks before `before`; of one stream, or of both."""
        for path in (self.folder / "rows").iterdir():
            number, *kind = path.name.split(".")
            if number.isdigit() and int(number) < before and stream in (None, *kind):
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete the folder and let go of the lock."""
        for name in FOLDERS:
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for name in FILES:
            (self.folder / name).unlink(missing_ok=True)
        self.close()
        if not any(self.folder.iterdir()):
            self.folder.rmdir()


def open_or_create(
    folder: Path,
    source: Source,
    plan: Plan,
    fingerprint: Mapping[str, Any],
    tokens: NDArray[np.int32],  # [rows, length]
    *,
    resume: bool | None = None,
) -> Work:
    """Go on in `folder` when it was begun with the same `fingerprint`, or begin in it.

    `source` is the model as it is quantized, with its global changes. `resume`: True, it must have
    been begun; False, what is there is forgotten. `Refused` when another process is at work there,
    when it was begun with something else (all fields that differ are told), or when it holds what
    is not ours.
    """
    check_usable(folder, resume=bool(resume))
    try:
        for name in FOLDERS:
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise unwritable(fault, folder) from fault
    lock = Lock(folder / "lock")
    try:
        if resume is False:
            forget(folder)
        return _open(folder, source, plan, fingerprint, tokens, lock)
    except BaseException:
        lock.release()
        raise


def _open(
    folder: Path,
    source: Source,
    plan: Plan,
    fingerprint: Mapping[str, Any],
    tokens: NDArray[np.int32],
    lock: Lock,
) -> Work:
    fields: dict[str, Any] = json.loads(json.dumps(fingerprint))
    known, resumed = (folder / NAME).is_file(), begun(folder)
    if known:
        differing = differences(read_journal(folder).fingerprint, fields)
        if differing:
            raise mismatch(folder, differing)
    sweep(folder)
    journal = Journal(
        fingerprint=fields,
        config=dict(source.config),
        model_type=source.model_type,
        tied=source.tied,
        tensors=source.tensors,
        notes=tuple(getattr(source, "notes", ())),
        target=plan.target,
        type=plan.type,
        forms=forms_of(source, plan),
        files=copy_files(source.folder, folder / "source"),
    )
    keep(folder / "tokens.npy", _npy(tokens))
    keep(folder / NAME, encode(journal))
    work = Work(Store(folder, journal), _grids(plan), resumed, lock)
    if resumed and not known:  # job.json was lost: nothing has said yet what the parts belong to
        for which in work.store.parts:
            if work.done(which):
                work.store.read(which)
    return work


def _grids(plan: Plan) -> dict[str, Grid]:
    return {one.grid.name: one.grid for one in plan.tensors if one.grid is not None}


def _npy(tokens: NDArray[np.int32]) -> bytes:
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(tokens, "<i4"), allow_pickle=False)
    return file.getvalue()


def work_bytes(plan: Plan) -> int:
    """Disk that the finished parts take at most: a byte for each code, the parameters, 4 bytes for
    each weight that stays float. Hidden states and the tokenizer come on top."""
    total = 0
    for tensor in plan.tensors:
        if tensor.source is None:
            continue
        if tensor.grid is None:
            total += 4 * int(np.prod(tensor.shape))
            continue
        rows, cols = tensor.source.shape
        total += sum(form.nbytes for form in layout(tensor.grid, (rows, cols)).values())
    return total
