"""From a model folder to an output, one chunk of rows at a time: `convert(model, to="gguf")`."""

from __future__ import annotations

import errno
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qconvert.asked import Asked, Calibrated
from qconvert.codes import Kept, joined
from qconvert.engine.bundle import Bundle, open_bundle
from qconvert.estimate import Estimate, chunk_rows, estimate
from qconvert.formats.refusal import Refused, raise_if_any, refuse
from qconvert.formats.target import OutputTensor, Plan, Request, Sink
from qconvert.job import DEFAULT, NOTHING, Job, StrPath, obstacles, prepare, shortages, work_folder
from qconvert.progress import BlockProgress, Progress, silent, silent_blocks
from qconvert.resources import peak_resident_bytes, usable_cores


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
    calibrated: Calibrated | None = None  # None: every weight was fitted by itself
    folder: Path | None = None  # the output, where it is one

    @property
    def bits_per_weight(self) -> float:
        """Of the tensors alone; headers and tokenizer are left out."""
        return _bits_per_weight(self.types)


def plan(
    model: StrPath,
    to: str = "gguf",
    *,
    bits: int | None = None,
    type: str | None = None,
    out: StrPath | None = None,
    split_bytes: int | None = None,
    request: Request = NOTHING,
    threads: int | None = None,
    asked: Asked = DEFAULT,
) -> tuple[Job, Estimate]:
    """What `convert` would do with the same arguments, and what it would cost."""
    job = prepare(
        model, to, bits=bits, type=type, out=out, split_bytes=split_bytes, request=request,
        asked=asked,
    )  # fmt: skip
    return job, _cost(job, asked, threads or usable_cores())


def _cost(job: Job, asked: Asked, threads: int) -> Estimate:
    if not job.calibrated:
        return estimate(job.plan, threads, job.codes.fitted(job.plan))
    from qconvert.cost import cost_of

    return cost_of(job, asked, threads)


def convert(
    model: StrPath,
    to: str = "gguf",
    *,
    bits: int | None = None,
    type: str | None = None,
    out: StrPath | None = None,
    split_bytes: int | None = None,
    request: Request = NOTHING,
    threads: int | None = None,
    force: bool = False,
    progress: Progress = silent,
    asked: Asked = DEFAULT,
    blocks: BlockProgress = silent_blocks,
) -> Conversion:
    """Convert the folder `model`, a checkpoint or a finished work folder, to the target `to`.

    `bits` or `type` ("Q4_K_M", "w4a16-g64") says how small, `request` what else a target may be
    asked for. `out` is a file, or a folder for a file of the default name; of a target that writes
    folders, the folder itself. `force` replaces an output that exists. `Refused` when it cannot be
    done, with nothing left behind. The bytes written do not depend on `threads`. `progress` is
    called with the name of the tensor at hand, the bytes of the source done so far, and their
    total.
    `asked` says how the weights are optimised; `blocks` is told of every block that is.
    """
    begin = time.perf_counter()
    job = prepare(
        model, to, bits=bits, type=type, out=out, split_bytes=split_bytes, request=request,
        asked=asked,
    )  # fmt: skip
    done = run(job, threads=threads, force=force, progress=progress, asked=asked, blocks=blocks)
    return replace(done, seconds=time.perf_counter() - begin)


def run(
    job: Job,
    *,
    threads: int | None = None,
    force: bool = False,
    progress: Progress = silent,
    asked: Asked = DEFAULT,
    blocks: BlockProgress = silent_blocks,
) -> Conversion:
    """Do what `prepare` decided."""
    begin = time.perf_counter()
    threads = threads or usable_cores()
    raise_if_any([*obstacles(job, force=force), *shortages(job, asked, threads)])
    calibrated = None
    if job.calibrated:
        job, calibrated = _calibrated(job, asked, threads, blocks)
    try:
        _stream(job, threads, progress)
    except OSError as fault:
        kept = None if calibrated is None else work_folder(job, asked)
        raise _failed(fault, job, kept) from fault
    if calibrated is not None and calibrated.work is None:
        shutil.rmtree(work_folder(job, asked), ignore_errors=True)
    return Conversion(
        job.model,
        job.plan.target,
        job.plan.type,
        job.files,
        sum(file.stat().st_size for file in job.files),
        time.perf_counter() - begin,
        peak_resident_bytes(),
        tallies(job.plan),
        job.plan,
        calibrated,
        job.path if job.target.folder else None,
    )


def _calibrated(
    job: Job, asked: Asked, threads: int, blocks: BlockProgress
) -> tuple[Job, Calibrated]:
    """The job of writing the finished work folder, and what was done to finish it."""
    from qconvert.calibrate import calibrate
    from qconvert.cost import placed

    assert job.recipe is not None
    assert job.checkpoint is not None
    folder = work_folder(job, asked)
    waits = asked.device != "cpu" and placed(job, asked, threads).waits
    told = calibrate(
        job.checkpoint, job.source, job.plan, job.recipe, asked, folder, threads, blocks,
        waits=waits,
    )  # fmt: skip
    bundle = open_bundle(folder)
    return replace(job, source=bundle, codes=Kept(bundle), recipe=None), told


def _stream(job: Job, threads: int, progress: Progress) -> None:
    total = sum(_source_bytes(tensor) for tensor in job.plan.tensors)
    done = 0
    with job.target.writer(job.plan, job.path) as sink:
        for tensor in job.plan.tensors:
            progress(tensor.name, done, total)
            _write(sink, tensor, job, threads)
            done += _source_bytes(tensor)
        progress("done", done, total)


def _write(sink: Sink, tensor: OutputTensor, job: Job, threads: int) -> None:
    """Write one tensor by chunks of rows, whole where its rows change places."""
    if tensor.statistic is not None:
        assert isinstance(job.source, Bundle)
        found = tensor.statistic.stored(job.source.largest(tensor.statistic))
        sink.write(tensor, np.full(tensor.shape, found, np.float32))
        return
    if tensor.column_scale:
        kept = (
            job.source.column_scale(tensor.column_scale) if isinstance(job.source, Bundle) else None
        )
        sink.write(tensor, np.ones(tensor.shape, np.float32) if kept is None else kept)
        return
    if tensor.source is None:
        assert tensor.values is not None
        sink.write(tensor, tensor.values)
        return
    if len(tensor.source.shape) == 1:
        sink.write(tensor, job.source.rows(tensor.source, 0, 1))
        return
    count, cols = tensor.source.shape
    step = chunk_rows(cols, 1 if tensor.grid is None else tensor.grid.together)
    spans = [(start, min(start + step, count)) for start in range(0, count, step)]
    if tensor.grid is None:
        if tensor.row_order is not None:
            spans = [(0, count)]
        for span in spans:
            sink.write(tensor, job.source.rows(tensor.source, *span))
        return
    chunks = job.codes(tensor, spans, threads)
    if tensor.row_order is not None:
        sink.write(tensor, joined(list(chunks)))
        return
    for chunk in chunks:
        sink.write(tensor, chunk)


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


def _failed(fault: OSError, job: Job, work: Path | None) -> Refused:
    """An error of the system while writing, as a refusal: the writer has cleaned up. `work`: the
    folder of the finished blocks, which stay."""
    left = "nothing was left"
    remedy = "free some space, name another place with --out, or choose fewer bits"
    if work is not None:
        left = f"the finished blocks are kept in {work}"
        remedy = (
            "free some space and give the same command again, or write them to another place: "
            f"qconvert {work} --to {job.target.name} --out OTHER"
        )
    if fault.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        problem = f"the disk is full: {job.path} could not be written ({fault.strerror}); {left}"
        return refuse(problem, remedy)
    return refuse(f"{job.path} could not be written: {fault}; {left}")
