"""How fast is this file in its runtime, and how much memory does it take?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from qconvert.formats.refusal import MissingRuntime
from qconvert.formats.target import Reader
from qconvert.runtimes import machine
from qconvert.runtimes.findings import BenchReport, RuntimeFacts, file_facts
from qconvert.runtimes.runtime import Runtime, Throughput

BUSY = 0.2  # share of the cores that others may use before timings become doubtful
STARVED = 0.9  # share of its threads' time that the runtime must have got
UNSTEADY = 0.15  # spread of the repetitions, relative to their median


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
) -> BenchReport:
    """Load `out` afresh and time it: a warm-up, then the median of `repetitions`.

    Each starts from an empty context. `batches`: numbers of sequences at once, each timed by
    itself. The runtime runs as users run it (`served`, where it checks otherwise). Raises
    `MissingRuntime`, `Refused` and `RuntimeFailed` as the runtime does.
    """
    runtime = getattr(runtime, "served", runtime)
    reason = runtime.unavailable()
    if reason is not None:
        raise MissingRuntime(runtime.name, reason, runtime.install)
    cores = threads or machine.physical_cores()
    version, busy = runtime.version(), machine.busy_share()
    started = time.perf_counter()
    with runtime.open(out, threads=cores, context=max(prompt, generate)) as session:
        load_seconds = time.perf_counter() - started
        rates = [session.throughput(prompt, generate, repetitions, count) for count in batches]
        peak = session.peak_bytes()
        notes = tuple(getattr(session, "notes", ()))
    return BenchReport(
        file=file_facts(out, reader),
        runtime=RuntimeFacts(runtime.name, version, cores, notes),
        throughput=rates[0],
        batches=tuple(rates),
        load_seconds=load_seconds,
        peak_bytes=peak,
        processor=machine.processor(),
        busy_share=busy,
        notes=tuple(
            dict.fromkeys([*notes, *(doubt for one in rates for doubt in doubts(one, busy))])
        ),
    )


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
