"""`qconvert check`, one or several outputs of a model: what it takes, put together and run.

Part of the command line, which alone sees all rooms; everything heavy is imported where it is
needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from qconvert.formats.refusal import Reason, collecting, raise_if_any, refuse
from qconvert.record import manifest_place_problems
from qconvert.running import NO_RUNTIME, chosen_runtime, float_output, runtime_faults, target_of
from qconvert.runtimes.gate.gates import Gates

if TYPE_CHECKING:
    from qconvert.checkpoint import Checkpoint
    from qconvert.engine.bundle import Bundle
    from qconvert.formats.target import Target
    from qconvert.runtimes.check import Output
    from qconvert.runtimes.findings import BenchReport, CheckReport, Finding, Verdict
    from qconvert.runtimes.gate.recorded import Manifest

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Proof:
    """How outputs are to be checked."""

    model: Path
    windows: int
    length: int
    text: Path | None = None
    work: Path | None = None  # the work folder whose codes they must hold
    gates: Gates = field(default_factory=Gates)
    timed: bool = False  # whatever the gates
    floor: bool = True  # measure the runtime's own noise
    no_runtime: bool = False
    runtime_name: str | None = None
    runtime_path: Path | None = None
    threads: int | None = None
    manifest: Path | None = None  # of the one output


@dataclass(frozen=True, slots=True)
class Verified:
    """Files beside the manifest that was written of them, and the verdict that it repeats."""

    verdict: Verdict
    told: str  # one sentence
    findings: tuple[Finding, ...]  # what has changed
    manifest: Manifest


def prove(outs: Sequence[Path], asked: Proof, progress: Progress) -> list[CheckReport]:
    """A report for each of `outs`. What cannot be checked is `Refused` before anything is measured,
    all of it at once. With a manifest, files are compared with it where it is there, and the
    verdict is written to it."""
    from qconvert.checkpoint import open_checkpoint
    from qconvert.engine.bundle import open_bundle
    from qconvert.runtimes.check import check_output, encoder_of, require
    from qconvert.runtimes.yardstick import yardstick

    reasons: list[Reason] = [*_contradictions(outs, asked)]
    outputs: list[Output] = []
    with ExitStack() as stack:
        with collecting(reasons):
            source = open_checkpoint(asked.model)
        with collecting(reasons):
            kept = None if asked.work is None else open_bundle(asked.work)
        raise_if_any(reasons)
        floats = Unquantized(source, stack)
        for out in outs:
            with collecting(reasons):
                outputs.append(_output(out, asked, kept, floats))
        raise_if_any(reasons)
        for output in outputs:
            require(output)
        encode = encoder_of(outputs[0], asked.threads or 1, asked.length)
        ruler = stack.enter_context(
            yardstick(
                source, text_file=asked.text, windows=asked.windows, length=asked.length,
                threads=asked.threads, encode=encode, progress=progress,
            )
        )  # fmt: skip
        found = []
        for output in outputs:
            name = f"{output.path.name}: " if len(outputs) > 1 else ""
            shown = partial(_named, progress, name)
            with runtime_faults(output.runtime):
                found.append(check_output(output, ruler, gates=asked.gates, progress=shown))
    if asked.manifest is not None:
        _record(outputs[0], asked, found[0])
    return found


def reverify(out: Path, manifest: Path) -> Verified:
    """Whether the files of `out` are those of its manifest, and what was said of them then."""
    from qconvert.runtimes.gate.manifest import verify
    from qconvert.runtimes.gate.reading import read_manifest

    if not out.exists():
        raise refuse(f"no such file or folder: {out}", "give the output that it was written of")
    recorded = read_manifest(manifest)
    changed = tuple(verify(recorded, out))
    if changed:
        return Verified("FAIL", "files have changed since", changed, recorded)
    if recorded.checked is None:
        told = "files are as they were made, but they were never checked: add --against MODEL"
        return Verified("INCONCLUSIVE", told, (), recorded)
    told = "files are as they were when that was said of them"
    return Verified(recorded.checked.verdict, told, (), recorded)


def _named(progress: Progress, name: str, what: str, done: int, total: int) -> None:
    progress(f"{name}{what}", done, total)


def _contradictions(outs: Sequence[Path], asked: Proof) -> list[Reason]:
    found = []
    if asked.no_runtime and (asked.runtime_name is not None or asked.runtime_path is not None):
        found.append(
            Reason("--no-runtime and a runtime contradict each other", "leave one of them out")
        )
    if asked.no_runtime and _wants_speed(asked):
        found.append(
            Reason("--no-runtime leaves nothing to time", "leave it out, or the gates of speed")
        )
    if asked.manifest is not None and len(outs) > 1:
        found.append(Reason("a manifest is of one output", "check each by itself"))
    found += manifest_place_problems(asked.manifest)
    twice = {str(out) for out in outs if list(outs).count(out) > 1}
    found += [Reason(f"{name} is named twice", "name it once") for name in sorted(twice)]
    return found


def _wants_speed(asked: Proof) -> bool:
    return asked.timed or asked.gates.need("speed") or asked.gates.need("beside")


@dataclass(slots=True)
class Unquantized:
    """Outputs of the source in float, one for each target; they go with `stack`."""

    source: Checkpoint
    stack: ExitStack
    _written: dict[str, Path] = field(default_factory=dict)

    def of(self, target: Target, beside: Path) -> Path:
        """Written beside an output, when it is first asked for."""
        if target.name not in self._written:
            written = self.stack.enter_context(float_output(self.source, target, beside))
            self._written[target.name] = written
        return self._written[target.name]


def _output(out: Path, asked: Proof, kept: Bundle | None, floats: Unquantized) -> Output:
    from qconvert.runtimes.check import Output
    from qconvert.runtimes.loader import loaders_of

    target = target_of(out)
    reader, runtime = target.reader(out), None
    if not asked.no_runtime:
        runtime = chosen_runtime(
            target, out, asked.runtime_name, asked.runtime_path, or_none=NO_RUNTIME
        )
    floor = floats.of(target, out) if runtime is not None and asked.floor else None
    speed: Callable[[], BenchReport] | None = None
    if runtime is not None and _wants_speed(asked):
        from qconvert.runtimes.bench import bench

        beside = floats.of(target, out)
        speed = partial(
            bench, out, reader=reader, runtime=runtime, threads=asked.threads, beside=beside
        )
    return Output(
        out,
        reader,
        runtime,
        target=target.name,
        loaders=tuple(loaders_of(target.name)),
        floor=floor,
        kept=kept,
        known=tuple(_changed(out, asked)),
        speed=speed,
    )


def _changed(out: Path, asked: Proof) -> list[Finding]:
    """What is not as the manifest says, where there is one."""
    from qconvert.runtimes.gate.manifest import verify
    from qconvert.runtimes.gate.reading import read_manifest

    if asked.manifest is None or not asked.manifest.exists():
        return []
    return verify(read_manifest(asked.manifest), out, asked.model)


def _record(output: Output, asked: Proof, report: CheckReport) -> None:
    """Add the verdict to the manifest; make one where there is none."""
    from qconvert.runtimes.gate.manifest import make_manifest, versions, write_manifest
    from qconvert.runtimes.gate.reading import read_manifest
    from qconvert.runtimes.gate.recorded import checked

    path = asked.manifest
    assert path is not None
    said, runtime = checked(report, asked.gates), report.runtime
    version = "" if runtime is None else runtime.version
    if path.exists():
        known = read_manifest(path)
        known = replace(known, versions={**known.versions, **versions(version)})
    else:
        known = make_manifest(
            output.path, asked.model, files=output.reader.files, runtime=version, leave_out=[path]
        )
    write_manifest(path, replace(known, checked=said))
