"""Job: everything that is decided about a conversion before a weight is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

from qconvert.asked import Asked
from qconvert.checkpoint import Checkpoint, open_checkpoint
from qconvert.codes import Codes, Fitted, Kept
from qconvert.engine.bundle import Bundle, open_bundle, recognises
from qconvert.formats.option import OWN, target_options
from qconvert.formats.refusal import Reason, collecting, raise_if_any, refuse
from qconvert.formats.source import Source
from qconvert.formats.target import Plan, Request, Target, target_named, targets
from qconvert.recipe import Recipe, parse, usual, why_usual
from qconvert.resources import folder_problems, output_problems, usable_cores

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
        if asked.activation_scales != DEFAULT.activation_scales:
            raise refuse(
                f"{_scales(asked)}: the scales of the work folder {path} are chosen already",
                "leave it out, or convert the model again",
            )
        return job_of_bundle(source, target, request, out)
    return job_of_checkpoint(source, target, request, out, recipe, asked)


def _untaken(target: Target, request: Request) -> Iterator[Reason]:
    """What is asked of a target that does not follow it, and the targets that do."""
    for name, _ in request.own:
        owners = [one.target for one in target_options() if one.name == name]
        if target.name not in owners:
            yield Reason(f"--to {target.name} takes no --{name}",
                         f"leave it out, or take --to {' or '.join(owners)}")  # fmt: skip
    for one in fields(request):
        if one.name == OWN or one.name in target.takes or getattr(request, one.name) in (None, ()):
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
    if plan.rule and recipe is not None and recipe != usual(plan):
        raise refuse(f"--method {recipe.name}: {plan.rule}", "leave out --method")
    if asked.activation_scales != DEFAULT.activation_scales and not _fixes_scales(plan):
        raise refuse(
            f"{_scales(asked)}: --to {plan.target} in {plan.type} fixes no scales of activations",
            f"leave it out, or choose a type of {plan.target} that does: with --static, or nvfp4",
        )
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


def _scales(asked: Asked) -> str:
    return f"--activation-scales {asked.activation_scales}"


def _fixes_scales(plan: Plan) -> bool:
    """Whether the output holds scales of activations that calibration finds."""
    kinds = {one.statistic.kind for one in plan.tensors if one.statistic is not None}
    return "input" in kinds


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


def work_folder(job: Job, asked: Asked) -> Path:
    """Where a calibrated conversion keeps what is finished: beside the output, named after it."""
    return asked.work or job.path.with_name(f"{job.path.name}.work")


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
    from qconvert.lacks import shortages as found

    return found(job, asked, threads or usable_cores())
