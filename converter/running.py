"""Which target an output is of, and the runtime that it is run in.

Part of the command line, which alone sees all rooms; everything heavy is imported where it is
needed.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qconvert.formats.refusal import MissingRuntime, refuse

if TYPE_CHECKING:
    from qconvert.checkpoint import Checkpoint
    from qconvert.formats.target import Target
    from qconvert.runtimes.runtime import Runtime

NO_RUNTIME = "; or judge the file alone, with --no-runtime"


def recognised(path: Path) -> Target | None:
    """The target that `path` is an output of."""
    from qconvert.formats.target import targets

    if not path.exists():
        raise refuse(f"no such file or folder: {path}", "give an output, or a model folder")
    return next((target for target in targets().values() if target.recognises(path)), None)


def target_of(path: Path) -> Target:
    """As `recognised`; `Refused` when there is none."""
    from qconvert.formats.target import targets

    target = recognised(path)
    if target is None:
        raise refuse(
            f"{path} is not an output of any known target ({', '.join(sorted(targets()))})",
            "give a file that `qconvert MODEL --to TARGET` has written, or one of the same format",
        )
    return target


def chosen_runtime(
    target: Target, path: Path, name: str | None, own_build: Path | None, or_none: str = ""
) -> Runtime:
    """A runtime for the output `path` of `target`: the one called `name`, else the first that is
    usable, the target's own before others, of those that are taken without being asked for.
    `Refused` or `MissingRuntime`, which says `or_none` too, where there is none."""
    from qconvert.runtimes.runtime import runtimes

    also = getattr(target, "also_read_by", None)
    read_by = (target.name, *(() if also is None else also(path)))
    found = sorted(runtimes().values(), key=lambda one: one.target != target.name)
    known = {one.name: one for one in found if one.target in read_by}
    unasked = [one for one in known.values() if not getattr(one, "on_request", False)]
    if (not unasked) if name is None else (name not in known):
        problem = f"no runtime {name or ''} for {target.name}".replace("  ", " ")
        raise refuse(problem, f"known: {', '.join(sorted(known)) or 'none'}")
    usable = (one for one in unasked if one.unavailable() is None)
    runtime = known[name] if name is not None else next(usable, unasked[0])
    if own_build is not None:
        runtime = with_own_build(runtime, own_build)
    reason = runtime.unavailable()
    if reason is not None:
        own = "name the folder that holds the shared libraries of a build, or leave the option out"
        raise MissingRuntime(runtime.name, reason, own if own_build else runtime.install + or_none)
    return runtime


def with_own_build(runtime: Any, folder: Path) -> Runtime:
    """The runtime on the user's own build, where it has a field `library` to name one in."""
    if not hasattr(runtime, "library"):
        raise refuse(f"{runtime.name} takes no build of one's own", "leave --runtime-path out")
    if not folder.is_dir():
        raise refuse(f"no such folder: {folder}", "name the folder of the shared libraries")
    found: Runtime = replace(runtime, library=folder)
    return found


@contextmanager
def runtime_faults(runtime: Runtime | None) -> Iterator[None]:
    """A runtime that crashes or hangs is a broken environment, told with its last words."""
    from qconvert.runtimes.process import RuntimeFailed

    try:
        yield
    except RuntimeFailed as failed:
        if runtime is None:
            raise
        raise MissingRuntime(runtime.name, str(failed), runtime.install) from failed


@contextmanager
def float_output(source: Checkpoint, target: Target, out: Path) -> Iterator[Path]:
    """An unquantized output of `source` beside `out`, for the runtime's own noise; then removed."""
    from qconvert.pipeline import convert

    stored = Counter(tensor.dtype for tensor in source.tensors if len(tensor.shape) > 1)
    kind = getattr(target, "unquantized", "") or stored.most_common(1)[0][0]
    with tempfile.TemporaryDirectory(prefix=".qconvert-", dir=out.absolute().parent) as folder:
        path = Path(folder) / f"unquantized{'' if target.folder else out.suffix}"
        done = convert(source.folder, target.name, type=kind, out=path)
        yield done.folder or done.files[0]
