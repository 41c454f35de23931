"""From a model folder to an output, one chunk of rows at a time: `convert(model, to="gguf")`."""

from __future__ import annotations

import errno
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from qconvert.asked import Asked, Calibrated
from qconvert.checkpoint import Checkpoint, open_checkpoint
from qconvert.codes import Codes, Fitted, Kept, joined
from qconvert.engine.bundle import Bundle, open_bundle, recognises
from qconvert.estimate import Estimate, chunk_rows, estimate
from qconvert.formats.refusal import Reason, Refused, collecting, raise_if_any, refuse
from qconvert.formats.source import Source
from qconvert.formats.target import (
    OutputTensor,
    Plan,
    Request,
    Sink,
    Target,
    target_named,
    targets,
)
from qconvert.progress import BlockProgress, Progress, silent, silent_blocks
from qconvert.recipe import Recipe, parse, usual, why_usual
from qconvert.resources import (
    folder_problems,
    output_problems,
    peak_resident_bytes,
    usable_cores,
)

StrPath = str | PathLike[str]
DEFAULT = Asked()
NOTHING = Request()

OPTIONS: Mapping[str, str] = {
    "split_bytes": "--split-size",
    "symmetric": "--symmetric or --asymmetric",
    "layers": "--layer",
}
"""Fields of a request -> their options, where these are called otherwise."""


@dataclass(frozen=True, slots=True)
class Job:
    """A conversion that nothing is known to forbid; no weight has been read."""

    source: Source  # a checkpoint, perhaps with global transforms, or a bundle
    codes: Codes  # where the quantized tensors come from
    target: Target
    plan: Plan
    path: Path
    files: tuple[Path, ...]  # more than one when the output is split, or a folder
    inputs: tuple[Path, ...]  # what is read, and must not be written over
    model: Path  # the folder that the user named
    recipe: Recipe | None = None  # None: the codes exist already
    checkpoint: Checkpoint | None = None  # the model as it is on disk; None of a bundle

    @property
    def calibrated(self) -> bool:
        """Whether text is looked at: by the method, or for numbers that the output holds."""
        measured = any(tensor.statistic is not None for tensor in self.plan.tensors)
        return self.recipe is not None and (self.recipe.calibrated or measured)


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


def prepare(
    model: StrPath,
    to: str = "gguf",
    *,
    bits: int | None = None,
    type: str | None = None,
    out: StrPath | None = None,
    split_bytes: int | None = None,
    request: Request = NOTHING,
    asked: Asked = DEFAULT,
) -> Job:
    """Decide everything about a conversion from headers alone; `Refused` with all reasons.

    `bits`, `type` and `split_bytes` are fields of `request`, for short.

    `model` is a model folder, or a finished work folder, whose codes are then written as they are.
    """
    reasons: list[Reason] = []
    target, source, recipe = None, None, None
    given: dict[str, Any] = {"bits": bits, "type": type, "split_bytes": split_bytes}
    request = replace(request, **{key: one for key, one in given.items() if one is not None})
    with collecting(reasons):
        target = target_named(to)
        raise_if_any(list(_untaken(target, request)))
    with collecting(reasons):
        path = Path(model)
        source = open_bundle(path) if recognises(path) else open_checkpoint(path)
    with collecting(reasons):
        recipe = None if asked.method is None else parse(asked.method)
    raise_if_any(reasons)
    assert target is not None
    assert source is not None
    if isinstance(source, Bundle):
        return job_of_bundle(source, target, request, out)
    return job_of_checkpoint(source, target, request, out, recipe, asked)


def _untaken(target: Target, request: Request) -> Iterator[Reason]:
    """What is asked of a target that does not follow it, and the targets that do."""
    for one in fields(request):
        if one.name in target.takes or getattr(request, one.name) in (None, ()):
            continue
        others = [name for name, other in targets().items() if one.name in other.takes]
        option = OPTIONS.get(one.name, f"--{one.name}")
        yield Reason(
            f"--to {target.name} takes no {option}",
            f"leave it out, or take --to {' or '.join(others)}" if others else "leave it out",
        )


def job_of_bundle(
    bundle: Bundle, target: Target, request: Request, out: StrPath | None = None
) -> Job:
    """Write the codes of a finished work folder as they are."""
    codes = Kept(bundle)
    plan = target.plan(bundle, codes.usual(request, target))
    raise_if_any(codes.problems(plan))
    plan = replace(plan, notes=(*bundle.notes, *plan.notes, *codes.notes(plan)))
    path, files = _placed(target, plan, out)
    return Job(bundle, codes, target, plan, path, files, bundle.files, bundle.store.folder)


def job_of_checkpoint(
    checkpoint: Checkpoint,
    target: Target,
    request: Request,
    out: StrPath | None,
    recipe: Recipe | None,
    asked: Asked,
) -> Job:
    plan = target.plan(checkpoint, request)
    recipe = (usual(plan) if recipe is None else recipe).at(asked.effort)
    source, notes = _with_transforms(checkpoint, recipe, asked)
    if source is not checkpoint:
        plan = target.plan(source, request)
    told = getattr(source, "notes", checkpoint.notes)  # those of a rotation, too
    notes = (*notes, *(why_usual(plan) if asked.method is None else ()))
    plan = replace(plan, notes=(*told, *notes, *plan.notes))
    path, files = _placed(target, plan, out)
    codes = Fitted(source, recipe.fit)
    folder = checkpoint.folder
    return Job(
        source, codes, target, plan, path, files, checkpoint.files, folder, recipe, checkpoint
    )


def _with_transforms(
    checkpoint: Checkpoint, recipe: Recipe, asked: Asked
) -> tuple[Source, tuple[str, ...]]:
    """The model as it is quantized, and what a user should know of it."""
    if not recipe.transforms:
        return checkpoint, ()
    from qconvert.calibrate import transformed

    return transformed(checkpoint, recipe, asked)


def _placed(target: Target, plan: Plan, out: StrPath | None) -> tuple[Path, tuple[Path, ...]]:
    """Where the output goes: its name, and its files."""
    path = Path(plan.default_name) if out is None else Path(out)
    if path.is_dir() and not target.folder:
        path = path / plan.default_name
    return path, target.outputs(plan, path)


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


def work_folder(job: Job, asked: Asked) -> Path:
    """Where a calibrated conversion keeps what is finished: beside the output, named after it."""
    return asked.work or job.path.with_name(f"{job.path.name}.work")


def _calibrated(
    job: Job, asked: Asked, threads: int, blocks: BlockProgress
) -> tuple[Job, Calibrated]:
    """The job of writing the finished work folder, and what was done to finish it."""
    from qconvert.calibrate import calibrate

    assert job.recipe is not None
    assert job.checkpoint is not None
    folder = work_folder(job, asked)
    told = calibrate(
        job.checkpoint, job.source, job.plan, job.recipe, asked, folder, threads, blocks
    )
    bundle = open_bundle(folder)
    return replace(job, source=bundle, codes=Kept(bundle), recipe=None), told


def obstacles(job: Job, *, force: bool = False) -> list[Reason]:
    """Why the output could not be written where it is to go; looked at anew on every call."""
    if job.target.folder:
        ours = force and job.target.recognises(job.path)
        return folder_problems(job.path, job.plan.nbytes, job.inputs, replaces=ours, forced=force)
    inputs = {file.resolve() for file in job.inputs}
    return [
        Reason(f"{file} is the model itself", "name another output with --out")
        for file in job.files
        if file.resolve() in inputs
    ] or output_problems(job.files, job.plan.nbytes, force=force)


def shortages(job: Job, asked: Asked, threads: int | None = None) -> list[Reason]:
    """What this machine lacks now for a calibrated conversion: memory, disk for the work folder."""
    if not job.calibrated:
        return []
    from qconvert import cost

    return cost.shortages(job, asked, threads or usable_cores())


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
