"""What the command line reports, as plain values that JSON can hold."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from qconvert import __version__
from qconvert.formats.known_grids import grid_named
from qconvert.formats.refusal import Reason, refuse
from qconvert.formats.source import DTYPES, SourceTensor
from qconvert.layer_report import of_calibrated
from qconvert.models import pattern
from qconvert.resources import free_bytes

if TYPE_CHECKING:
    from qconvert.engine.bundle import Bundle
    from qconvert.estimate import Estimate
    from qconvert.formats.source import Source
    from qconvert.formats.target import OutputTensor, Plan, Target
    from qconvert.job import Job
    from qconvert.methods import Algorithm, Named
    from qconvert.pipeline import Conversion

SHOWN_VALUES = 4  # of a long list in the metadata


class Runtime(Protocol):
    """What is told of a runtime; this room does not know the rooms beside it."""

    @property
    def name(self) -> str: ...
    @property
    def target(self) -> str: ...
    @property
    def install(self) -> str: ...
    def unavailable(self) -> str | None: ...
    def version(self) -> str: ...


@dataclass(frozen=True, slots=True)
class _Row:
    role: str
    name: str
    shape: tuple[int, ...]
    type: str
    nbytes: int
    note: str = ""


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: dataclasses, paths, numpy scalars and arrays are unfolded."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)


def write_report(value: Any, where: str) -> None:
    """Write `value` as JSON to the file `where`, or to standard output when it is "-"."""
    text = json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if where == "-":
        import click

        click.echo(text, nl=False)
        return
    write_whole(text, Path(where))


def write_whole(text: str, path: Path) -> None:
    """Write `text` to the file `path`, whole or not at all; `Refused` where that cannot be."""
    aside = path.with_name(f".{path.name}.part")
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise refuse(f"cannot write the report {path}: {error.strerror}") from error


def grouped(rows: Iterable[_Row], *, each: bool = False) -> list[dict[str, Any]]:
    """Like tensors together, in the order in which they first appear; `each`: one by one."""
    groups: dict[tuple[Any, ...], list[_Row]] = {}
    for row in rows:
        name = row.name if each else pattern(row.name)
        key = (row.role, name, row.shape, row.type, row.note)
        groups.setdefault(key, []).append(row)
    found = []
    first = {key[:2]: place for place, key in reversed(list(enumerate(groups)))}
    for role, name, shape, kind, note in sorted(groups, key=lambda key: first[key[:2]]):
        members = groups[role, name, shape, kind, note]
        nbytes = sum(member.nbytes for member in members)
        weights = len(members) * math.prod(shape)
        found.append(
            {
                "role": role, "pattern": name, "shape": list(shape), "count": len(members),
                "type": kind, "bytes": nbytes, "bits_per_weight": 8 * nbytes / max(weights, 1),
                "note": note,
            }
        )  # fmt: skip
    return found


def by_type(rows: Iterable[_Row]) -> dict[str, dict[str, int]]:
    """Per stored type: tensors, weights, bytes."""
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        entry = found.setdefault(row.type, {"tensors": 0, "weights": 0, "bytes": 0})
        entry["tensors"] += 1
        entry["weights"] += math.prod(row.shape)
        entry["bytes"] += row.nbytes
    return dict(sorted(found.items()))


def _row(tensor: OutputTensor) -> _Row:
    made = "measured" if tensor.statistic is not None else "computed"
    made = "column_scale" if tensor.column_scale else made
    role = tensor.source.role if tensor.source else made
    return _Row(role, tensor.name, tensor.shape, tensor.dtype, tensor.nbytes, tensor.note)


def _stored(rows: Sequence[_Row], *, each: bool) -> dict[str, Any]:
    weights = sum(math.prod(row.shape) for row in rows)
    return {
        "tensors": len(rows),
        "weights": weights,
        "bits_per_weight": 8 * sum(row.nbytes for row in rows) / max(weights, 1),
        "types": by_type(rows),
        "groups": grouped(rows, each=each),
    }


def about(plan: Plan, path: Path) -> dict[str, str]:
    """What the target says of its output, in few words: where it runs, the command that serves
    it."""
    lines: Mapping[str, str] = plan.details.get("about", {})
    return {name: line.replace("{folder}", str(path)) for name, line in lines.items()}


def of_plan(job: Job, cost: Estimate, obstacles: Sequence[Reason] = ()) -> dict[str, Any]:
    """What a conversion would write, how, what it costs, and what stands in its way."""
    plan, data, recipe = job.plan, cost.calibrating, job.recipe
    return {
        "model": str(job.model),
        "model_type": job.source.model_type,
        "target": plan.target,
        "type": plan.type,
        "folder": str(job.path) if job.target.folder else None,
        "files": [str(file) for file in job.files],
        "bytes": plan.nbytes,
        "about": about(plan, job.path),
        **_stored([_row(tensor) for tensor in plan.tensors], each=False),
        "notes": [*plan.notes, *(data.notes if data else ())],
        "method": None if recipe is None else recipe.name,
        "steps": [] if recipe is None else list(recipe.steps),
        "calibrating": None if data is None else asdict(data),
        "estimate": {
            "peak_memory_bytes": cost.peak_bytes,
            "disk_bytes": cost.disk_bytes,
            "seconds": cost.seconds,
        },
        "disk_free_bytes": free_bytes(
            (job.path if job.target.folder else job.files[0]).absolute().parent
        ),
        "obstacles": [{"problem": one.problem, "remedy": one.remedy} for one in obstacles],
    }


def of_conversion(done: Conversion, threads: int) -> dict[str, Any]:
    """What a conversion has written, and what it took."""
    plan = done.plan
    text = None if done.calibrated is None else done.calibrated.calibration
    read = sum(tensor.source.nbytes for tensor in plan.tensors if tensor.source)
    return {
        "qconvert": __version__,
        "model": str(done.model),
        "target": done.target,
        "type": done.type,
        "folder": None if done.folder is None else str(done.folder),
        "files": [{"path": str(file), "bytes": file.stat().st_size} for file in done.files],
        "bytes": done.nbytes,
        "about": about(plan, done.folder or done.files[0]),
        **_stored([_row(tensor) for tensor in plan.tensors], each=False),
        "notes": [*plan.notes, *(text.notes if text else ())],
        "seconds": done.seconds,
        "source_bytes": read,
        "peak_memory_bytes": done.peak_bytes,
        "threads": threads,
        "calibrated": None if done.calibrated is None else of_calibrated(done.calibrated),
    }


def of_output(path: Path, target: Target, *, each: bool = False) -> dict[str, Any]:
    """What an output holds: files, metadata, tensors by pattern and by type."""
    reader = target.reader(path)
    rows = [_Row("", t.name, t.shape, t.dtype, t.nbytes) for t in reader.tensors.values()]
    files = (
        sorted(file for file in path.iterdir() if file.is_file()) if target.folder else reader.files
    )
    told = getattr(target, "about", None)  # of targets that have more to say than their metadata
    return {
        "kind": target.name,
        "about": {} if told is None else dict(told(path)),
        "files": [{"path": str(file), "bytes": file.stat().st_size} for file in files],
        "bytes": sum(file.stat().st_size for file in files),
        **_stored(rows, each=each),
        "metadata": {key: shortened(plain(value)) for key, value in reader.metadata.items()},
    }


def of_model(source: Source, *, each: bool = False) -> dict[str, Any]:
    """What a model folder holds, from its headers and configuration."""
    rows = [_Row(_role(one), one.name, one.shape, one.dtype, one.nbytes) for one in source.tensors]
    files = sorted(file for file in source.folder.iterdir() if file.is_file())
    return {
        "kind": f"model folder of type {source.model_type}" + (", tied" if source.tied else ""),
        "files": [{"path": str(file), "bytes": file.stat().st_size} for file in files],
        "bytes": sum(file.stat().st_size for file in files),
        **_stored(rows, each=each),
        "metadata": {key: shortened(plain(value)) for key, value in source.config.items()},
    }


def of_bundle(bundle: Bundle, *, each: bool = False) -> dict[str, Any]:
    """What a finished work folder holds: what it was made for and how, and its tensors. Sizes of
    tensors are those of their grids as packed; in the folder, each code takes a byte."""
    made = {
        f"{name}.{key}" if key else name: item
        for name, value in bundle.store.journal.fingerprint.items()
        if name not in ("config", "weights", "plan")
        for key, item in (value.items() if isinstance(value, Mapping) else [("", value)])
    }
    rows = [
        _Row(_role(one), one.name, one.shape, kind, _packed(one, kind))
        for one in bundle.tensors
        for kind in bundle.store.journal.forms[one.name]
    ]
    metadata = {"target": bundle.target, "type": bundle.type, **made}
    return {
        "kind": f"work folder of a model of type {bundle.model_type}",
        "files": [{"path": str(file), "bytes": file.stat().st_size} for file in bundle.files],
        "bytes": sum(file.stat().st_size for file in bundle.files),
        **_stored(rows, each=each),
        "metadata": {key: shortened(plain(value)) for key, value in metadata.items()},
    }


def _role(tensor: SourceTensor) -> str:
    return tensor.role if tensor.part == "weight" else f"{tensor.role} {tensor.part}"


def _packed(tensor: SourceTensor, kind: str) -> int:
    """Bytes of a tensor on the grid, or in the float type, `kind`."""
    if kind in DTYPES:
        return math.prod(tensor.shape) * (4 if kind == "F32" else 2)
    return tensor.shape[0] * grid_named(kind).row_bytes(tensor.shape[1])


def of_targets(
    targets: Mapping[str, Target], runtimes: Mapping[str, Runtime]
) -> list[dict[str, Any]]:
    """Per target: what it can hold, and its runtimes; for those not usable here, why."""

    def runtime(one: Runtime) -> dict[str, Any]:
        reason = one.unavailable()
        return {
            "name": one.name,
            "usable": reason is None,
            "version": one.version() if reason is None else None,
            "reason": reason,
            "install": one.install,
        }

    return [
        {
            "target": target.name,
            "summary": target.summary,
            "types": [{"name": name, "summary": line} for name, line in target.types],
            "runtimes": [
                runtime(one)
                for one in runtimes.values()
                if one.target in (target.name, *getattr(target, "also", ()))
            ],
        }
        for target in targets.values()
    ]


def of_methods(named: Sequence[Named], algorithms: Iterable[Algorithm]) -> dict[str, Any]:
    """The named methods, and what fills the slots of a recipe."""
    return {
        "methods": [asdict(one) for one in named],
        "algorithms": [asdict(one) for one in algorithms],
    }


def shortened(value: Any) -> Any:
    """A long list as its first values and its length."""
    if isinstance(value, list) and len(value) > SHOWN_VALUES:
        return [*value[:SHOWN_VALUES], f"... {len(value):,} in all"]
    return value
