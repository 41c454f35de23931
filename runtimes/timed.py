"""How a worker times its model: prompt and generation apart, each as often as is asked for, after a
run that warms up and does not count.

A prompt is read until the first token behind it is chosen, so that its time is that to the first
token. A median lies, with 95 % confidence and whatever the distribution of the repetitions, between
two of them: those that a sign test at 5 % does not exclude. Six repetitions are the least for that;
fewer show the slowest and the fastest, which five do with 94 %.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

Work = Callable[[], float | None]
"""Done once; the seconds that count, or None for all that it took."""

MISSED = 0.05  # how often an interval may lie beside what it is of


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def throughput(
    read: Work,
    write: Work,
    *,
    prompt: int,
    generate: int,
    repetitions: int,
    threads: int,
    batch: int,
    sequences: int = 1,
    on_cpu: bool = True,
    warm: bool = True,
) -> dict[str, Any]:
    """The fields of `runtime.Throughput`. `read` and `write` are of all `sequences` together;
    `on_cpu`: whether the threads of this process do the work, so that their share of the time tells
    how busy the machine was; `warm`: whether one more run of each goes before."""
    wall, cpu = time.perf_counter(), time.process_time()
    reads = _rates(read, sequences * prompt, repetitions, warm)
    writes = _rates(write, sequences * generate, repetitions, warm)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        **rates(reads, writes, sequences * prompt),
        "prompt_tokens": prompt,
        "generate_tokens": generate,
        "threads": threads,
        "batch": batch,
        "cpu_share": cpu / (wall * threads) if on_cpu else None,
        "sequences": sequences,
    }


def rates(reads: Sequence[float], writes: Sequence[float], tokens: int) -> dict[str, Any]:
    """Those fields that tell of the repetitions, from the rates of each. `tokens`: of all prompts
    together."""
    first = [tokens / rate for rate in reads]
    return {
        "prompt_tokens_per_s": median(reads),
        "generate_tokens_per_s": median(writes),
        "first_token_s": median(first),
        "repetitions": len(reads),
        "prompt_spread": (min(reads), max(reads)),
        "generate_spread": (min(writes), max(writes)),
        "first_token_spread": (min(first), max(first)),
        "prompt_interval": of_median(reads),
        "generate_interval": of_median(writes),
        "first_token_interval": of_median(first),
        "prompt_rates": tuple(reads),
        "generate_rates": tuple(writes),
    }


def of_median(values: Sequence[float]) -> tuple[float, float]:
    """Where the median of what `values` are drawn from lies with 95 % confidence: all but the k
    smallest and the k largest, with the largest k by which chance, that of at most k heads in as
    many throws of a coin, or at most k tails, misses it no more often. All where they are few."""
    ordered, k = sorted(values), 0
    while 2 * sum(math.comb(len(ordered), heads) for heads in range(k + 2)) <= (
        MISSED * 2 ** len(ordered)
    ):
        k += 1
    return ordered[k], ordered[-1 - k]


def _rates(work: Work, tokens: int, repetitions: int, warm: bool) -> list[float]:
    """Tokens per second of each repetition."""
    found = []
    for _ in range(repetitions + warm):
        started = time.perf_counter()
        counted = work()
        found.append(tokens / (time.perf_counter() - started if counted is None else counted))
    return found[int(warm) :]
