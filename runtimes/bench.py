"""How fast is this file in its runtime, and how much memory does it take?

Beside an unquantized output, both are loaded at once and take turns, one repetition each, so that
whatever else the machine does meets both; which goes first changes from round to round.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

from qconvert.formats.refusal import MissingRuntime
from qconvert.formats.target import Reader, target_named
from qconvert.runtimes import machine, timed
from qconvert.runtimes.findings import (
    BenchReport,
    FileFacts,
    Interval,
    RuntimeFacts,
    Speedup,
    file_facts,
)
from qconvert.runtimes.runtime import Runtime, Session, Throughput

BUSY = 0.2  # share of the cores that others may use before timings become doubtful
STARVED = 0.9  # share of its threads' time that the runtime must have got
UNSTEADY = 0.15  # spread of the repetitions, relative to their median
ROOM = 2.0  # bytes of memory that a loaded byte of a file may take
APART = "not timed in alternation: memory does not hold this output and the unquantized one at once"


@dataclass(frozen=True, slots=True)
class Work:
    """What is timed."""

    prompts: tuple[int, ...]
    generate: int
    repetitions: int
    batches: tuple[int, ...]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(length of the prompt, sequences at once)."""
        return [(prompt, count) for prompt in self.prompts for count in self.batches]


def bench(
    out: Path,
    runtime: Runtime,
    *,
    reader: Reader,
    prompt: int = 512,
    generate: int = 64,
    repetitions: int = 5,
    threads: int | None = None,
    batches: Sequence[int] = (1,),
    prompts: Sequence[int] = (),
    beside: Path | None = None,
) -> BenchReport:
    """Load `out` afresh and time it: a warm-up, then the median of `repetitions`.

    Each starts from an empty context. `prompts`: lengths, in place of `prompt` alone; `batches`:
    numbers of sequences at once; each of both is timed by itself. `beside`: an unquantized output
    of the same target, timed in alternation. The runtime runs as users run it (`served`, where it
    checks otherwise). Raises `MissingRuntime`, `Refused` and `RuntimeFailed` as the runtime does.
    """
    runtime = getattr(runtime, "served", runtime)
    reason = runtime.unavailable()
    if reason is not None:
        raise MissingRuntime(runtime.name, reason, runtime.install)
    cores = threads or machine.physical_cores()
    work = Work(tuple(prompts) or (prompt,), generate, repetitions, tuple(batches))
    files = [file_facts(out, reader)]
    if beside is not None:
        files.append(file_facts(beside, target_named(runtime.target).reader(beside)))
    paths = [out] if beside is None else [out, beside]
    version, busy = runtime.version(), machine.busy_share()
    together = ROOM * sum(one.nbytes for one in files) < machine.available_bytes()
    runs = [Run(path) for path in paths]
    for group in [runs] if together else [[run] for run in runs]:
        _timed(group, runtime, work, cores)
    reports = [
        run.report(file, RuntimeFacts(runtime.name, version, cores, run.notes), busy)
        for run, file in zip(runs, files, strict=True)
    ]
    if beside is None:
        return reports[0]
    notes = (*reports[0].notes, *([] if together else [APART]))
    return replace(reports[0], notes=notes, beside=reports[1], speedups=_speedups(*reports))


@dataclass(slots=True)
class Run:
    """An output, and what was found out about it so far."""

    path: Path
    load_seconds: float = 0.0
    peak_bytes: int = 0
    notes: tuple[str, ...] = ()
    rounds: list[list[Throughput]] = field(default_factory=list)  # of each pair of the work

    def open(self, runtime: Runtime, threads: int, context: int) -> Session:
        started = time.perf_counter()
        session = runtime.open(self.path, threads=threads, context=context)
        self.load_seconds = time.perf_counter() - started
        self.notes = tuple(getattr(session, "notes", ()))
        return session

    def report(self, file: FileFacts, facts: RuntimeFacts, busy: float) -> BenchReport:
        rates = tuple(pooled(rounds) for rounds in self.rounds)
        doubtful = [doubt for one in rates for doubt in doubts(one, busy)]
        return BenchReport(
            file=file,
            runtime=facts,
            throughput=rates[0],
            batches=rates,
            load_seconds=self.load_seconds,
            peak_bytes=self.peak_bytes,
            processor=machine.processor(),
            busy_share=busy,
            notes=tuple(dict.fromkeys([*self.notes, *doubtful])),
        )


def _timed(runs: Sequence[Run], runtime: Runtime, work: Work, threads: int) -> None:
    """All of the work, in all runs at once; one alone is not interrupted between repetitions."""
    context = max(*work.prompts, work.generate)
    with ExitStack() as stack:
        opened = [(run, stack.enter_context(run.open(runtime, threads, context))) for run in runs]
        alone = len(opened) == 1
        rounds, each = (1, work.repetitions) if alone else (work.repetitions, 1)
        for prompt, count in work.pairs:
            for run, _ in opened:
                run.rounds.append([])
            for number in range(rounds):
                for run, session in opened if number % 2 == 0 else opened[::-1]:
                    run.rounds[-1].append(
                        session.throughput(prompt, work.generate, each, count, warm=number == 0)
                    )
        for run, session in opened:
            run.peak_bytes = session.peak_bytes()


def pooled(parts: Sequence[Throughput]) -> Throughput:
    """The repetitions of all parts, which timed the same, as those of one."""
    if len(parts) == 1:
        return parts[0]
    one = parts[0]
    told: dict[str, Any] = timed.rates(
        [rate for part in parts for rate in part.prompt_rates],
        [rate for part in parts for rate in part.generate_rates],
        one.sequences * one.prompt_tokens,
    )
    shares = [part.cpu_share for part in parts if part.cpu_share is not None]
    return replace(one, **told, cpu_share=fmean(shares) if shares else None)


def _speedups(ours: BenchReport, plain: BenchReport) -> tuple[Speedup, ...]:
    return tuple(
        Speedup(
            here.prompt_tokens,
            here.sequences,
            _gain(here.prompt_rates, there.prompt_rates),
            _gain(here.generate_rates, there.generate_rates),
        )
        for here, there in zip(ours.batches, plain.batches, strict=True)
    )


def _gain(ours: Sequence[float], plain: Sequence[float]) -> Interval:
    """Of rounds: what both share, such as a slow minute of the machine, is not in their ratio."""
    ratios = [here / there for here, there in zip(ours, plain, strict=True)]
    return Interval(median(ratios), *timed.of_median(ratios))


def doubts(rates: Throughput, busy: float) -> list[str]:
    """Why these rates should not be trusted, if they should not."""
    found = []
    if busy > BUSY:
        found.append(f"other programs used {busy:.0%} of the cores just before")
    if rates.cpu_share is not None and rates.cpu_share < STARVED:
        found.append(f"the runtime got {rates.cpu_share:.0%} of its {rates.threads} threads' time")
    for name, rate, (slowest, fastest) in (
        ("prompt", rates.prompt_tokens_per_s, rates.prompt_spread),
        ("generation", rates.generate_tokens_per_s, rates.generate_spread),
    ):
        if fastest - slowest > UNSTEADY * rate:
            found.append(f"the {name} rate varied from {slowest:.0f} to {fastest:.0f} tokens/s")
    return found
