"""A work folder filled without calibration, and a process that does so until it is killed:
`python data_free.py MODEL WORK TYPE`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from qconvert.codes import Fitted
from qconvert.engine.bundle import Bundle
from qconvert.engine.fingerprint import fingerprint
from qconvert.engine.journal import forms_of
from qconvert.engine.parts import Stored
from qconvert.engine.record import BlockRecord, InputRecord, LinearRecord
from qconvert.engine.work import Work, open_or_create
from qconvert.job import Job, prepare

TOKENS = np.arange(64, dtype=np.int32).reshape(4, 16)


def record(index: int) -> BlockRecord:
    linear = LinearRecord("q", "attn_q", "Q4_0", 0.5, 0.25, ("weighted", "gptq"))
    inputs = InputRecord("attn_in", 3, 1, 2.5, 3.5, (1.0, 0.0, 2.0))
    return BlockRecord(index, (linear,), (inputs,), 1.5, 1000)


def begin(model: Path, folder: Path, kind: str = "Q4_0", **options: Any) -> tuple[Work, Job]:
    """The work folder of a data-free job, and the job."""
    job = prepare(model, type=kind, out=folder.parent / "none.gguf")
    assert not isinstance(job.source, Bundle)
    changed = options.pop("fields", {})
    fields = fingerprint(
        job.source, forms_of(job.source, job.plan), {"rounds": ["nearest"]}, TOKENS, seed=0
    )
    return open_or_create(
        folder, job.source, job.plan, {**fields, **changed}, TOKENS, **options
    ), job


def block(job: Job, index: int) -> Stored:
    """A block as the data-free path makes it."""
    quantized, floats = {}, {}
    for tensor in job.plan.tensors:
        source = tensor.source
        if source is None or source.block != index:
            continue
        if tensor.grid is None:
            stop = source.shape[0] if len(source.shape) == 2 else 1
            floats[source.name] = job.source.rows(source, 0, stop)
        else:
            (codes,) = Fitted(job.source)(tensor, [(0, source.shape[0])], 1)
            quantized[source.name] = codes
    return Stored(quantized, floats)


def write_outer(work: Work, job: Job, which: Any, unchanged: bool = True) -> None:
    """What stands before or after the blocks, some rows at a time."""
    names = {tensor.name for tensor in work.journal.part(which)}
    with work.outer(which, unchanged=unchanged) as out:
        for tensor in job.plan.tensors:
            source = tensor.source
            if source is None or source.name not in names:
                continue
            rows = source.shape[0] if len(source.shape) == 2 else 1
            spans = [(at, min(at + 100, rows)) for at in range(0, rows, 100)]
            if tensor.grid is None:
                for span in spans:
                    out.write(source.name, job.source.rows(source, *span))
            else:
                for codes in Fitted(job.source)(tensor, spans, 1):
                    out.write(source.name, codes)


def fill(work: Work, job: Job) -> None:
    """Finish what is missing."""
    for which in work.store.missing():
        if isinstance(which, int):
            work.write_block(which, block(job, which), record(which))
        else:
            write_outer(work, job, which)


def finished(model: Path, folder: Path, kind: str) -> Path:
    """A finished work folder."""
    work, job = begin(model, folder, kind)
    with work:
        fill(work, job)
    return folder


def forever(model: Path, folder: Path, kind: str) -> None:
    """Write the same two blocks until the process is ended."""
    work, job = begin(model, folder, kind)
    stored = [block(job, index) for index in range(work.journal.blocks)]
    sys.stdout.write("at work\n")
    sys.stdout.flush()
    while True:
        for index, one in enumerate(stored):
            work.write_block(index, one, record(index))


if __name__ == "__main__":
    forever(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
