"""How a worker times its model: prompt and generation apart, each as often as is asked for, after a
run that warms up and does not count."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

Work = Callable[[], float | None]
"""Done once; the seconds that count, or None for all that it took."""


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
) -> dict[str, Any]:
    """The fields of `runtime.Throughput`. `read` and `write` are of all `sequences` together;
    `on_cpu`: whether the threads of this process do the work, so that their share of the time tells
    how busy the machine was."""
    wall, cpu = time.perf_counter(), time.process_time()
    reads = _rates(read, sequences * prompt, repetitions)
    writes = _rates(write, sequences * generate, repetitions)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "prompt_tokens_per_s": median(reads),
        "generate_tokens_per_s": median(writes),
        "prompt_tokens": prompt,
        "generate_tokens": generate,
        "threads": threads,
        "batch": batch,
        "repetitions": repetitions,
        "prompt_spread": (min(reads), max(reads)),
        "generate_spread": (min(writes), max(writes)),
        "cpu_share": cpu / (wall * threads) if on_cpu else None,
        "sequences": sequences,
    }


def _rates(work: Work, tokens: int, repetitions: int) -> list[float]:
    """Tokens per second of each repetition."""
    found = []
    for _ in range(repetitions + 1):
        started = time.perf_counter()
        counted = work()
        found.append(tokens / (time.perf_counter() - started if counted is None else counted))
    return found[1:]
