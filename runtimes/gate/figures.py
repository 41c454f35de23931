"""What each gate looks at, taken out of what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qconvert.runtimes.findings import BenchReport, Interval
from qconvert.runtimes.gate.intervals import positions_for_quantile
from qconvert.runtimes.measure import Distance, Intervals

REPETITIONS = 5
"""Fewer say nothing of a median: all of five lie on one side of it by chance in 1 of 16."""


@dataclass(frozen=True, slots=True)
class Measured:
    """All that gates may look at; None: not measured."""

    distance: Distance | None  # with its intervals
    size: int  # bytes on disk
    speed: BenchReport | None


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure, and what its interval comes from; `count` is 0 where the figure is exact."""

    found: Interval
    count: int = 0
    of: str = ""  # what is counted: "tokens"
    fewest: int = 0  # from which on the interval has both ends


def exact(value: float) -> Figure:
    return Figure(Interval(value, value, value))


def _of_text(
    which: Callable[[Intervals], Interval], fewest: int = 0
) -> Callable[[Measured], Figure | None]:
    def figure(measured: Measured) -> Figure | None:
        distance = measured.distance
        if distance is None or distance.intervals is None:
            return None
        seen = distance.positions - distance.broken
        return Figure(which(distance.intervals), seen, "tokens", fewest)

    return figure


def _of_speed(
    which: Callable[[BenchReport], Interval | None],
) -> Callable[[Measured], Figure | None]:
    def figure(measured: Measured) -> Figure | None:
        if measured.speed is None:
            return None
        found = which(measured.speed)
        if found is None:
            return None
        count = measured.speed.throughput.repetitions
        if count < REPETITIONS:
            found = Interval(found.value, 0.0, math.inf)
        return Figure(found, count, "repetitions", REPETITIONS)

    return figure


def _once(which: Callable[[BenchReport], float]) -> Callable[[Measured], Figure | None]:
    """What is measured once has no interval."""

    def figure(measured: Measured) -> Figure | None:
        return None if measured.speed is None else exact(which(measured.speed))

    return figure


def _reading(speed: BenchReport) -> Interval:
    one = speed.throughput
    return Interval(one.prompt_tokens_per_s, *(one.prompt_interval or one.prompt_spread))


def _writing(speed: BenchReport) -> Interval:
    one = speed.throughput
    return Interval(one.generate_tokens_per_s, *(one.generate_interval or one.generate_spread))


def _first_token(speed: BenchReport) -> Interval | None:
    one = speed.throughput
    if one.first_token_s is None:
        return None
    between = one.first_token_interval or one.first_token_spread
    return Interval(one.first_token_s, *(between or (one.first_token_s,) * 2))


FIGURES: Mapping[str, Callable[[Measured], Figure | None]] = {
    "max_kl": _of_text(lambda one: one.kl_mean),
    "max_kl_p99": _of_text(lambda one: one.kl_p99, positions_for_quantile(0.99)),
    "max_kl_p999": _of_text(lambda one: one.kl_p999, positions_for_quantile(0.999)),
    "min_top1": _of_text(lambda one: one.top1),
    "max_ppl_ratio": _of_text(lambda one: one.perplexity_ratio),
    "max_size": lambda measured: exact(measured.size),
    "min_speedup": _of_speed(lambda one: one.speedup.generate if one.speedup else None),
    "min_prompt_speedup": _of_speed(lambda one: one.speedup.prompt if one.speedup else None),
    "min_tokens_per_s": _of_speed(_writing),
    "min_prompt_tokens_per_s": _of_speed(_reading),
    "max_first_token_s": _of_speed(_first_token),
    "max_load_s": _once(lambda speed: speed.load_seconds),
    "max_memory": _once(lambda speed: speed.peak_bytes),
}
"""By the key of a gate."""
