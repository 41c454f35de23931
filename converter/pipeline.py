"""From a model folder to an output, one chunk of rows at a time: `convert(model, to="gguf")`."""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qconvert.checkpoint import Checkpoint, open_checkpoint
from qconvert.estimate import Estimate, chunk_rows, estimate
from qconvert.formats.grid import ScaleOverflow
from qconvert.formats.refusal import Reason, Refused, collecting, raise_if_any, refuse
from qconvert.formats.target import OutputTensor, Plan, Request, Sink, Target, target_named
from qconvert.formats.tensor import QuantizedTensor
from qconvert.importance import importance
from qconvert.progress import Progress, silent
from qconvert.resources import output_problems, peak_resident_bytes, usable_cores

StrPath = str | PathLike[str]


@dataclass(frozen=True, slots=True)
class Job:
    """A conversion that nothing is known to forbid; no weight has been read."""

    source: Checkpoint
    target: Target
    plan: Plan
    path: Path
    files: tuple[Path, ...]  # more than one when the output is split


@dataclass(frozen=True, slots=True)
class Tally:
    """How much of an output is stored in one type."""

    tensors: int
    weights: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Conversion:
    """A finished conversion."""

    model: Path
    target: str
    type: str
    files: tuple[Path, ...]
    nbytes: int  # of all files
    seconds: float
    peak_bytes: int  # largest resident size of this process, ever
    types: Mapping[str, Tally]  # stored type -> how much is in it
    plan: Plan

    @property
    def bits_per_weight(self) -> float:
        """Of the tensors alone; headers and tokenizer are left out."""
        return _bits_per_weight(self.types)


def prepare(
    model: StrPath,
    to: str = "gguf",
    *,
    bits: int | None = None,
    type: str | None = None,
    out: StrPath | None = None,
    split_bytes: int | None = None,
) -> Job:
    """Decide everything about a conversion from headers alone; `Refused` with all reasons."""
    reasons: list[Reason] = []
    target, source = None, None
    with collecting(reasons):
        target = target_named(to)
    with collecting(reasons):
        source = open_checkpoint(Path(model))
    raise_if_any(reasons)
    assert target is not None
    assert source is not None
    plan = target.plan(source, Request(bits, type, split_bytes))
    plan = replace(plan, notes=(*source.notes, *plan.notes))
    path = Path(plan.default_name) if out is None else Path(out)
    if path.is_dir():
        path = path / plan.default_name
    return Job(source, target, plan, path, target.outputs(plan, path))


def plan(
    model: StrPath,
    to: str = "gguf",
    *,
    bits: int | None = None,
    type: str | None = None,
    out: StrPath | None = None,
    split_bytes: int | None = None,
    threads: int | None = None,
) -> tuple[Job, Estimate]:
    """What `convert` would do with the same arguments, and what it would cost."""
    job = prepare(model, to, bits=bits, type=type, out=out, split_bytes=split_bytes)
    return job, estimate(job.plan, threads or usable_cores())


def convert(
    model: StrPath,
    to: str = "gguf",
    *,
    bits: int | None = None,
    type: str | None = None,
    out: StrPath | None = None,
    split_bytes: int | None = None,
    threads: int | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Conversion:
    """Convert the folder `model` to the target `to`.

    `bits` or `type` ("Q4_K_M") says how small; `out` is a file, or a folder for a file of the
    default name; `force` replaces an output that exists. `Refused` when it cannot be done, with
    nothing left behind. The bytes written do not depend on `threads`. `progress` is called with
    the name of the tensor at hand, the bytes of the source done so far, and their total.
    """
    begin = time.perf_counter()
    job = prepare(model, to, bits=bits, type=type, out=out, split_bytes=split_bytes)
    done = run(job, threads=threads, force=force, progress=progress)
    return replace(done, seconds=time.perf_counter() - begin)


def run(
    job: Job,
    *,
    threads: int | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Conversion:
    """Do what `prepare` decided."""
    begin = time.perf_counter()
    raise_if_any(obstacles(job, force=force))
    try:
        _stream(job, threads or usable_cores(), progress)
    except OSError as fault:
        raise _failed(fault, job.path) from fault
    return Conversion(
        job.source.folder,
        job.plan.target,
        job.plan.type,
        job.files,
        sum(file.stat().st_size for file in job.files),
        time.perf_counter() - begin,
        peak_resident_bytes(),
        tallies(job.plan),
        job.plan,
    )


def obstacles(job: Job, *, force: bool = False) -> list[Reason]:
    """Why the output could not be written where it is to go; looked at anew on every call."""
    inputs = {file.resolve() for file in job.source.files}
    return [
        Reason(f"{file} is the model itself", "name another output with --out")
        for file in job.files
        if file.resolve() in inputs
    ] or output_problems(job.files, job.plan.nbytes, force=force)


def _stream(job: Job, threads: int, progress: Progress) -> None:
    total = sum(_source_bytes(tensor) for tensor in job.plan.tensors)
    done = 0
    with job.target.writer(job.plan, job.path) as sink:
        for tensor in job.plan.tensors:
            progress(tensor.name, done, total)
            _write(sink, tensor, job.source, threads)
            done += _source_bytes(tensor)
        progress("done", done, total)


def _write(sink: Sink, tensor: OutputTensor, source: Checkpoint, threads: int) -> None:
    """Read, quantize and write one tensor by chunks of rows."""
    if tensor.source is None:
        assert tensor.values is not None
        sink.write(tensor, tensor.values)
        return
    if len(tensor.source.shape) == 1:
        sink.write(tensor, source.rows(tensor.source, 0, 1))
        return
    count, cols = tensor.source.shape
    step = chunk_rows(cols)
    spans = [(start, min(start + step, count)) for start in range(0, count, step)]
    if tensor.grid is None:
        if tensor.row_order is not None:
            spans = [(0, count)]
        for span in spans:
            sink.write(tensor, source.rows(tensor.source, *span))
        return
    weight = importance(source, tensor.source)
    chunks = (_quantized(tensor, source, span, weight, threads) for span in spans)
    if tensor.row_order is not None:
        sink.write(tensor, _joined(list(chunks)))
        return
    for chunk in chunks:
        sink.write(tensor, chunk)


def _quantized(
    tensor: OutputTensor,
    source: Checkpoint,
    span: tuple[int, int],
    weight: NDArray[np.float32] | None,
    threads: int,
) -> QuantizedTensor:
    assert tensor.source is not None
    assert tensor.grid is not None
    rows = source.rows(tensor.source, *span)
    try:
        return tensor.grid.quantize(rows, weight, threads=threads)
    except ScaleOverflow as fault:
        raise refuse(
            f"{tensor.source.name} holds a weight too large for {tensor.dtype}: {fault}",
            f"its largest is {np.abs(rows).max():.3g}: choose a float type, or check the model",
        ) from None


def _joined(chunks: list[QuantizedTensor]) -> QuantizedTensor:
    """One tensor of the rows of all `chunks`."""
    if len(chunks) == 1:
        return chunks[0]
    params = {
        name: np.concatenate([chunk.params[name] for chunk in chunks]) for name in chunks[0].params
    }
    codes = np.concatenate([chunk.codes for chunk in chunks])
    return QuantizedTensor(chunks[0].grid, codes, params)


def tallies(plan: Plan) -> dict[str, Tally]:
    """How much of `plan` is stored in each type, the largest first."""
    found: dict[str, Tally] = {}
    for tensor in plan.tensors:
        have = found.get(tensor.dtype, Tally(0, 0, 0))
        found[tensor.dtype] = Tally(
            have.tensors + 1,
            have.weights + math.prod(tensor.shape),
            have.nbytes + tensor.nbytes,
        )
    return dict(sorted(found.items(), key=lambda item: -item[1].nbytes))


def _bits_per_weight(types: Mapping[str, Tally]) -> float:
    weights = sum(tally.weights for tally in types.values())
    return 8 * sum(tally.nbytes for tally in types.values()) / weights if weights else 0.0


def _source_bytes(tensor: OutputTensor) -> int:
    return 0 if tensor.source is None else tensor.source.nbytes


def _failed(fault: OSError, path: Path) -> Refused:
    """An error of the system while writing, as a refusal: the writer has cleaned up."""
    if fault.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return refuse(
            f"the disk is full: {path} could not be written ({fault.strerror}); nothing was left",
            "free some space, name another place with --out, or choose fewer bits",
        )
    return refuse(f"{path} could not be written: {fault}")
