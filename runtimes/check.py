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

from qconvert.formats.refusal import MissingRuntime
from qconvert.formats.source import Source
from qconvert.formats.target import Reader
from qconvert.runtimes import reference
from qconvert.runtimes.findings import (
    CheckReport,
    Finding,
    RuntimeFacts,
    TextFacts,
    file_facts,
)
from qconvert.runtimes.guarded import Guarded
from qconvert.runtimes.judged import Found, Judged, Way, open_ways
from qconvert.runtimes.loader import Loader
from qconvert.runtimes.loading import read_by
from qconvert.runtimes.numbers import cache_notes, measure_windows, roundings_of
from qconvert.runtimes.runtime import Runtime
from qconvert.runtimes.text import Encode
from qconvert.runtimes.weights import WeightCheck
from qconvert.runtimes.yardstick import Progress, Yardstick, yardstick

NO_RUNTIME = "no runtime was run: the file was decoded, and compared with its source"


@dataclass(frozen=True, slots=True)
class Output:
    """An output to be checked, and by what."""

    path: Path
    reader: Reader
    runtime: Runtime | None  # None: the file alone is looked at
    loaders: tuple[Loader, ...] = ()
    floor: Path | None = None
    """An unquantized output of the same model, for the runtime's own noise. Without a runtime it is
    not used."""
    known: tuple[Finding, ...] = ()  # what was found wrong before


def check(
    out: Path,
    source: Source,
    *,
    reader: Reader,
    runtime: Runtime | None,
    loaders: Iterable[Loader] = (),
    floor: Path | None = None,
    text_file: Path | None = None,
    windows: int = 8,
    length: int = 512,
    threads: int | None = None,
    max_kl: float | None = None,
    progress: Progress = lambda what, done, total: None,
) -> CheckReport:
    """Measure one output against the model that it was made from, and judge it: `yardstick` and
    `check_output` in one."""
    output = Output(out, reader, runtime, tuple(loaders), floor)
    require(output)
    with yardstick(
        source, text_file=text_file, windows=windows, length=length, threads=threads,
        encode=encoder_of(output, threads or 1, length), progress=progress,
    ) as ruler:  # fmt: skip
        return check_output(output, ruler, max_kl=max_kl, progress=progress)


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
    max_kl: float | None = None,
    progress: Progress = lambda what, done, total: None,
) -> CheckReport:
    """Measure one output with a yardstick, and judge it.

    A runtime that does not load the file, crashes or hangs makes the check fail, and so does what a
    loader finds wrong; one that is not installed is a note. `Refused` when the file is damaged, or
    of another model. `progress(what, done, total)` counts windows.
    """
    started = time.perf_counter()
    runtime, found = output.runtime, Found()
    found.findings += output.known
    found.loaders, told = read_by(output.loaders, output.path, ruler.source)
    found.notes += [*([NO_RUNTIME] if runtime is None else []), *told]
    with ExitStack() as stack:
        ways = open_ways(runtime, output.path, ruler.threads, ruler.pieces.length, stack)
        if runtime is not None:
            _tokens(runtime, ruler, ways[0].session, found)
            _floor(runtime, output.floor, ruler, found)
        _decoded(output.reader, ruler, ways, found, progress)
        facts = (
            None
            if runtime is None
            else RuntimeFacts(runtime.name, runtime.version(), ruler.threads, ways[0].session.notes)
        )
    judged = Judged(ways, found, max_kl)
    return _report(output, ruler, judged, found, ways, facts, started)


def _report(
    output: Output,
    ruler: Yardstick,
    judged: Judged,
    found: Found,
    ways: Sequence[Way],
    runtime: RuntimeFacts | None,
    started: float,
) -> CheckReport:
    text = ruler.pieces.text
    return CheckReport(
        verdict="FAIL" if judged.findings else "PASS",
        reasons=tuple(one.problem for one in judged.findings),
        findings=tuple(judged.findings),
        notes=_notes(ways, found),
        file=file_facts(output.path, output.reader),
        model=str(ruler.source.folder),
        runtime=runtime,
        text=TextFacts(
            text.name,
            text.sha256,
            len(ruler.pieces.tokens),
            ruler.pieces.length,
            ruler.pieces.prefix,
        ),
        quantization=judged.quantization,
        runtime_adds=judged.first.adds,
        total=judged.first.total,
        floor=judged.floor,
        noise=judged.first.noise,
        tokens=found.tokens,
        tensors=tuple(found.tensors),
        max_kl=None,
        seconds=time.perf_counter() - started,
        also=judged.also,
        loaders=tuple(found.loaders),
        as_told=judged.as_told,
        layers=found.layers,
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
    reader: Reader,
    ruler: Yardstick,
    ways: Sequence[Way],
    found: Found,
    progress: Progress,
) -> None:
    """The decoded file beside its source, tensor by tensor and in what it computes."""
    weighing = WeightCheck(ruler.source, reader)
    model = reference.from_weights(
        ruler.source, reader.weights(ruler.source), threads=ruler.threads, seen=weighing
    )
    found.tensors.extend(weighing.errors)
    found.notes.extend([weighing.note] if weighing.note else [])
    roundings = roundings_of(ways, reader, ruler)
    found.notes.extend(cache_notes(ways, roundings))
    measure_windows(model, reader, ways, roundings, ruler, found, progress)


def _notes(ways: Sequence[Way], found: Found) -> tuple[str, ...]:
    """Each once, in order."""
    told = [note for way in ways for note in way.session.notes]
    return tuple(dict.fromkeys([*told, *found.notes]))
