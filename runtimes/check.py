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
from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer

from qconvert.formats.refusal import MissingRuntime, refuse
from qconvert.formats.source import Source
from qconvert.formats.target import Reader
from qconvert.runtimes import machine, reference
from qconvert.runtimes.findings import CheckReport, FileFacts, RuntimeFacts, TextFacts, file_facts
from qconvert.runtimes.guarded import Guarded
from qconvert.runtimes.judged import Found, Judged, Way, open_ways
from qconvert.runtimes.loader import Loader
from qconvert.runtimes.loading import read_by
from qconvert.runtimes.measure import compare
from qconvert.runtimes.noise import rounded, rounding_of, rounding_told
from qconvert.runtimes.runtime import Runtime
from qconvert.runtimes.spool import Spool
from qconvert.runtimes.text import Text, Windows, cut, encoder, prefix, read_text, read_tokenizer
from qconvert.runtimes.weights import WeightCheck

NOISE_WINDOWS = 2  # the expected noise is measured on this many: each costs one more forward pass

NO_RUNTIME = "no runtime was run: the file was decoded, and compared with its source"

Progress = Callable[[str, int, int], None]


def check(
    out: Path,
    source: Source,
    *,
    reader: Reader,
    runtime: Runtime | None,
    loaders: Iterable[Loader] = (),
    text_file: Path | None = None,
    windows: int = 8,
    length: int = 512,
    threads: int | None = None,
    floor: Path | None = None,
    max_kl: float | None = None,
    progress: Progress = lambda what, done, total: None,
) -> CheckReport:
    """Measure `out` against the model that it was made from, and judge it.

    `text_file` is UTF-8 text, by default the excerpt of wikitext-2 test that ships with us;
    `floor` is an unquantized output of the same model, for the runtime's own noise. A runtime that
    does not load the file, crashes or hangs makes the check fail, and so does what a loader finds
    wrong; one that is not installed is a note. `MissingRuntime` when the runtime cannot be used
    here at all; `Refused` when the text is too short, or the file is of another model. Without a
    runtime, `floor` is not used. `progress(what, done, total)` counts windows.
    """
    started = time.perf_counter()
    reason = None if runtime is None else runtime.unavailable()
    if runtime is not None and reason is not None:
        raise MissingRuntime(runtime.name, reason, runtime.install)
    _refuse_long_windows(source, length)
    content, tokenizer = read_text(text_file), read_tokenizer(source.folder)
    cores = threads or machine.physical_cores()
    found = Found()
    found.loaders, told = read_by(loaders, out, source)
    found.notes += [*([NO_RUNTIME] if runtime is None else []), *told]
    with ExitStack() as stack:
        ways = open_ways(runtime, out, cores, length, stack)
        session = ways[0].session if ways else Guarded(None, "none is run")
        pieces = _cut(content, source.folder, tokenizer, session, windows, length)
        if runtime is not None:
            _tokens(runtime, tokenizer, session, found)
        with _source(source, pieces, runtime, floor, cores, found, progress) as spool:
            _decoded(source, reader, pieces, ways, spool, cores, found, progress)
        facts = (
            None
            if runtime is None
            else RuntimeFacts(runtime.name, runtime.version(), cores, session.notes)
        )
    text = TextFacts(content.name, content.sha256, len(pieces.tokens), pieces.length, pieces.prefix)
    report = _report(ways, found, file_facts(out, reader), str(source.folder), facts, text, max_kl)
    return replace(report, seconds=time.perf_counter() - started)


def _report(
    ways: Sequence[Way],
    found: Found,
    file: FileFacts,
    model: str,
    runtime: RuntimeFacts | None,
    text: TextFacts,
    max_kl: float | None,
) -> CheckReport:
    """What was found, judged; how long it took is for the caller to say."""
    judged = Judged(ways, found, max_kl)
    return CheckReport(
        verdict="FAIL" if judged.reasons else "PASS",
        reasons=judged.reasons,
        notes=_notes(ways, found),
        file=file,
        model=model,
        runtime=runtime,
        text=text,
        quantization=judged.quantization,
        runtime_adds=judged.first.adds,
        total=judged.first.total,
        floor=judged.floor,
        noise=judged.first.noise,
        tokens=found.tokens,
        tensors=tuple(found.tensors),
        max_kl=max_kl,
        seconds=0.0,
        also=judged.also,
        loaders=tuple(found.loaders),
        as_told=judged.as_told,
    )


def _refuse_long_windows(source: Source, length: int) -> None:
    most = source.config.get("max_position_embeddings") or source.config.get("n_positions")
    if most and length > most:
        raise refuse(
            f"windows of {length} tokens do not fit the model's {most} positions",
            f"--length {most}",
        )


def _cut(
    content: Text,
    folder: Path,
    tokenizer: Tokenizer | None,
    session: Guarded,
    count: int,
    length: int,
) -> Windows:
    if tokenizer is not None:
        front = prefix(folder, tokenizer)
        return cut(content, encoder(tokenizer), count=count, length=length, prefix=front)
    if session.session is None:
        raise refuse(f"{folder} has no tokenizer.json, and the runtime fails: {session.failure}")
    return cut(content, session.session.tokenize, count=count, length=length)


def _tokens(runtime: Runtime, tokenizer: Tokenizer | None, session: Guarded, found: Found) -> None:
    """The runtime's tokens beside the model's, but for characters that it is known to misread."""
    if tokenizer is None:
        found.notes.append("no tokenizer.json: the runtime's own tokens, not compared")
        return
    misreads = getattr(runtime, "misreads", {})
    found.tokens = session.tokens(tokenizer, "".join(misreads))
    found.notes.extend(f"{why}; left out of the comparison" for why in misreads.values())


def _source(
    source: Source,
    pieces: Windows,
    runtime: Runtime | None,
    floor: Path | None,
    threads: int,
    found: Found,
    progress: Progress,
) -> Spool:
    """The source's logits, kept; the runtime's noise floor on the way."""
    model = reference.from_folder(source.folder, threads=threads)
    count = len(pieces.tokens)
    spool = Spool(count, pieces.length, model.vocab)
    if floor is None or runtime is None:
        unquantized = Guarded(None)
    else:
        unquantized = Guarded.open(runtime, floor, threads=threads, context=pieces.length)
    with unquantized:
        for number, tokens in enumerate(pieces.tokens):
            progress("source model", number, count)
            logits = model.logits(tokens)
            spool.put(number, logits)
            there = unquantized.logits(tokens, model.vocab)
            if there is not None:
                found.floor.append(compare(logits, there, tokens))
        progress("source model", count, count)
    if unquantized.failure:
        found.notes.append(f"no noise floor: {unquantized.failure}")
        found.floor.clear()
    return spool


def _decoded(
    source: Source,
    reader: Reader,
    pieces: Windows,
    ways: Sequence[Way],
    spool: Spool,
    threads: int,
    found: Found,
    progress: Progress,
) -> None:
    """The decoded file beside the source, and the runtime, in each way, beside both; without one,
    the decoded file with activations rounded as it says."""
    weighing = WeightCheck(source, reader)
    model = reference.from_weights(source, reader.weights(source), threads=threads, seen=weighing)
    found.tensors.extend(weighing.errors)
    found.notes.extend([weighing.note] if weighing.note else [])
    roundings = [rounding_of(way.runtime, way.session.session, reader, source) for way in ways]
    told = rounding_told(reader, source)
    costs = not ways and bool(told.inputs or told.cache)
    found.notes.extend(
        str(getattr(way.runtime, "cuts_cache", ""))
        for way, rounding in zip(ways, roundings, strict=True)
        if rounding.cache and rounding.cache_cut
    )
    count = len(pieces.tokens)
    for number, tokens in enumerate(pieces.tokens):
        progress("file and runtime", number, count)
        original, decoded = spool.get(number), model.logits(tokens)
        found.quantization.append(compare(original, decoded, tokens))
        if costs:
            with rounded(model, told):
                found.as_told.append(compare(original, model.logits(tokens), tokens))
        for way, rounding in zip(ways, roundings, strict=True):
            there = way.session.logits(tokens, model.vocab)
            if there is None:
                continue
            way.adds.append(compare(decoded, there, tokens))
            way.total.append(compare(original, there, tokens))
            if number < NOISE_WINDOWS:
                with rounded(model, rounding):
                    explained = model.logits(tokens)
                way.expected.append(compare(decoded, explained, tokens))
                way.beyond.append(compare(explained, there, tokens))
    progress("file and runtime", count, count)


def _notes(ways: Sequence[Way], found: Found) -> tuple[str, ...]:
    """Each once, in order."""
    told = [note for way in ways for note in way.session.notes]
    return tuple(dict.fromkeys([*told, *found.notes]))
