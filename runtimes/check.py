"""Is this file right, in its real runtime? `check` measures, and gives a verdict with reasons.

Two distances are told apart: from the source to the file as decoded by our own reader (what
quantization costs), and from there to the runtime (what the runtime adds). One model is in memory
at a time, beside the runtime's process; the source's logits wait on disk. A runtime that users run
in another way than is checked (`also_checked`) is measured and judged in both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.refusal import MissingRuntime
from qconvert.formats.source import Source
from qconvert.formats.target import Reader
from qconvert.runtimes import reference
from qconvert.runtimes.cache_reach import cache_findings
from qconvert.runtimes.findings import (
    BenchReport,
    CheckReport,
    Finding,
    RuntimeFacts,
    TextFacts,
    file_facts,
)
from qconvert.runtimes.gate.gates import Gates
from qconvert.runtimes.gate.judge import verdict_of
from qconvert.runtimes.gate.positions import histogram, worst
from qconvert.runtimes.guarded import Guarded
from qconvert.runtimes.judged import Found, Judged, Way, open_ways
from qconvert.runtimes.loader import Loader
from qconvert.runtimes.loading import read_by
from qconvert.runtimes.numbers import cache_notes, measure_layers, measure_windows, roundings_of
from qconvert.runtimes.reach import scale_findings
from qconvert.runtimes.runtime import Runtime
from qconvert.runtimes.second.agreement import Kept, differences, disagreements
from qconvert.runtimes.second.reading import second_weights
from qconvert.runtimes.text import Encode
from qconvert.runtimes.told import compare_told
from qconvert.runtimes.weights import WeightCheck
from qconvert.runtimes.yardstick import Progress, Yardstick, yardstick

NO_GATES = Gates()

NO_RUNTIME = "no runtime was run: the file was decoded, and compared with its source"


@dataclass(frozen=True, slots=True)
class Output:
    """An output to be checked, and by what."""

    path: Path
    reader: Reader
    runtime: Runtime | None  # None: the file alone is looked at
    target: str = ""  # for a second reader of its files
    loaders: tuple[Loader, ...] = ()
    floor: Path | None = None
    """An unquantized output of the same model, for the runtime's own noise. Without a runtime it is
    not used."""
    kept: Kept | None = None  # the work folder whose codes it must hold
    known: tuple[Finding, ...] = ()  # what was found wrong before
    speed: Callable[[], BenchReport] | None = None  # times it, when all else is done


def check(
    out: Path,
    source: Source,
    *,
    reader: Reader,
    runtime: Runtime | None,
    target: str = "",
    loaders: Iterable[Loader] = (),
    floor: Path | None = None,
    text_file: Path | None = None,
    windows: int = 8,
    length: int = 512,
    threads: int | None = None,
    gates: Gates = NO_GATES,
    progress: Progress = lambda what, done, total: None,
) -> CheckReport:
    """Measure one output against the model that it was made from, and judge it: `yardstick` and
    `check_output` in one."""
    output = Output(out, reader, runtime, target, tuple(loaders), floor)
    require(output)
    with yardstick(
        source, text_file=text_file, windows=windows, length=length, threads=threads,
        encode=encoder_of(output, threads or 1, length), progress=progress,
    ) as ruler:  # fmt: skip
        return check_output(output, ruler, gates=gates, progress=progress)


def require(output: Output) -> None:
    """`MissingRuntime` when its runtime cannot be used here at all."""
    runtime = output.runtime
    reason = None if runtime is None else runtime.unavailable()
    if runtime is not None and reason is not None:
        raise MissingRuntime(runtime.name, reason, runtime.install)


def encoder_of(output: Output, threads: int, context: int) -> Callable[[], Encode] | None:
    """The runtime's own tokens, for a model without a tokenizer.json."""
    runtime = output.runtime
    if runtime is None:
        return None

    def opened() -> Encode:
        def encode(text: str) -> Sequence[int]:
            with runtime.open(output.path, threads=threads, context=context) as session:
                return session.tokenize(text)

        return encode

    return opened


def check_output(
    output: Output,
    ruler: Yardstick,
    *,
    gates: Gates = NO_GATES,
    progress: Progress = lambda what, done, total: None,
) -> CheckReport:
    """Measure one output with a yardstick, and judge it.

    A runtime that does not load the file, crashes or hangs makes the check fail, and so does what a
    loader finds wrong; one that is not installed is a note. `Refused` when the file is damaged, or
    of another model. `progress(what, done, total)` counts windows.
    """
    started = time.perf_counter()
    runtime, found = output.runtime, Found()
    found.findings += [*output.known, *compare_told(output.reader, ruler.source)]
    found.loaders, told = read_by(output.loaders, output.path, ruler.source)
    found.notes += [*([NO_RUNTIME] if runtime is None else []), *told]
    with ExitStack() as stack:
        ways = open_ways(runtime, output.path, ruler.threads, ruler.pieces.length, stack)
        if runtime is not None:
            _tokens(runtime, ruler, ways[0].session, found)
            _floor(runtime, output.floor, ruler, found)
        _decoded(output, ruler, ways, found, progress)
        facts = (
            None
            if runtime is None
            else RuntimeFacts(runtime.name, runtime.version(), ruler.threads, ways[0].session.notes)
        )
    speed = output.speed() if output.speed is not None and not _failed(ways) else None
    return _report(output, ruler, gates, found, ways, facts, speed, started)


def _failed(ways: Sequence[Way]) -> bool:
    return any(way.session.failure for way in ways)


def _report(
    output: Output,
    ruler: Yardstick,
    gates: Gates,
    found: Found,
    ways: Sequence[Way],
    runtime: RuntimeFacts | None,
    speed: BenchReport | None,
    started: float,
) -> CheckReport:
    """What was found, judged."""
    pieces, judged = ruler.pieces, Judged(ways, found)
    file = file_facts(output.path, output.reader)
    judgements = judged.gated(gates, file.nbytes, speed, len(pieces.tokens))
    gated = [one.told for one in judgements if one.verdict == "FAIL"]
    rows = next(
        rows for rows in (ways and ways[0].total, found.as_told, found.quantization) if rows
    )
    return CheckReport(
        verdict=verdict_of(judged.findings, judgements),
        reasons=(*(one.problem for one in judged.findings), *gated),
        findings=tuple(judged.findings),
        judgements=judgements,
        notes=_notes(ways, found),
        file=file,
        model=str(ruler.source.folder),
        runtime=runtime,
        text=TextFacts(
            pieces.text.name,
            pieces.text.sha256,
            len(pieces.tokens),
            pieces.length,
            pieces.prefix,
        ),
        quantization=judged.quantization,
        runtime_adds=judged.first.adds,
        total=judged.first.total,
        floor=judged.floor,
        noise=judged.first.noise,
        tokens=found.tokens,
        tensors=tuple(found.tensors),
        decoded_twice=found.twice,
        kept=output.kept is not None,
        seconds=time.perf_counter() - started,
        also=judged.also,
        loaders=tuple(found.loaders),
        as_told=judged.as_told,
        layers=found.layers,
        worst=worst(rows, pieces.tokens, ruler.decode),
        histogram=histogram(rows),
        speed=speed,
    )


def _tokens(runtime: Runtime, ruler: Yardstick, session: Guarded, found: Found) -> None:
    """The runtime's tokens beside the model's, but for characters that it is known to misread."""
    if ruler.tokenizer is None:
        found.notes.append("no tokenizer.json: the runtime's own tokens, not compared")
        return
    misreads = getattr(runtime, "misreads", {})
    found.tokens = session.tokens(ruler.tokenizer, "".join(misreads))
    found.notes.extend(f"{why}; left out of the comparison" for why in misreads.values())


def _floor(runtime: Runtime, unquantized: Path | None, ruler: Yardstick, found: Found) -> None:
    if unquantized is None:
        return
    floor = ruler.floor(runtime, unquantized)
    found.floor.extend(floor.rows)
    if floor.failure:
        found.notes.append(f"no noise floor: {floor.failure}")


def _decoded(
    output: Output,
    ruler: Yardstick,
    ways: Sequence[Way],
    found: Found,
    progress: Progress,
) -> None:
    """The decoded file beside its source, tensor by tensor and in what it computes."""
    source, reader = ruler.source, output.reader
    weighing = WeightCheck(source, reader)
    second = second_weights(output.target, output.path, source)
    both = set() if second is None else set(second)

    def seen(name: str, value: NDArray[np.float32]) -> None:
        weighing(name, value)
        if second is not None and name in both:
            found.findings += disagreements({name: value}, {name: second[name]})

    weights = reader.weights(source)
    model = reference.from_weights(source, weights, threads=ruler.threads, seen=seen)
    found.twice = len(both)
    if output.kept is not None:
        found.findings += differences(reader.weights(output.kept), output.kept)
    found.findings += weighing.findings
    found.tensors.extend(weighing.errors)
    found.notes.extend([weighing.note] if weighing.note else [])
    found.findings += scale_findings(model, reader, source, ruler.pieces.tokens[0])
    found.findings += cache_findings(model, reader, ruler.pieces.tokens[0])
    roundings = roundings_of(ways, reader, ruler)
    found.notes.extend(cache_notes(ways, roundings))
    measure_windows(model, reader, ways, roundings, ruler, found, progress)
    measure_layers(model, ways, roundings, ruler, found)


def _notes(ways: Sequence[Way], found: Found) -> tuple[str, ...]:
    """Each once, in order."""
    told = [note for way in ways for note in way.session.notes]
    return tuple(dict.fromkeys([*told, *found.notes]))
