"""What a check has measured so far, in each way of running the file, and the judgement of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

from qconvert.runtimes import verdict
from qconvert.runtimes.findings import (
    BenchReport,
    Finding,
    Judgement,
    LayerError,
    LoaderFacts,
    Noise,
    OtherWay,
    Stage,
    TokenParity,
)
from qconvert.runtimes.gate.gates import Gates
from qconvert.runtimes.gate.judge import judge
from qconvert.runtimes.guarded import Guarded
from qconvert.runtimes.measure import Distance, Rows, summarise
from qconvert.runtimes.runtime import Runtime
from qconvert.runtimes.weights import TensorError

STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclass(slots=True)
class Way:
    """The runtime in one way of running it, and the positions compared with it so far, by pair."""

    name: str  # as reasons call it
    runtime: Runtime
    session: Guarded
    adds: list[Rows] = field(default_factory=list)
    total: list[Rows] = field(default_factory=list)
    expected: list[Rows] = field(default_factory=list)
    beyond: list[Rows] = field(default_factory=list)


@dataclass(slots=True)
class Found:
    """Positions compared so far, by pair, and what else came up."""

    quantization: list[Rows] = field(default_factory=list)
    as_told: list[Rows] = field(default_factory=list)  # activations rounded as the file says
    floor: list[Rows] = field(default_factory=list)
    tensors: list[TensorError] = field(default_factory=list)
    twice: int = 0  # tensors that a second reader has decoded, too
    findings: list[Finding] = field(default_factory=list)  # of files, settings and tensors
    layers: tuple[LayerError, ...] = ()
    block: int | None = None  # the first whose output leaves the noise in the runtime
    tokens: TokenParity | None = None
    loaders: list[LoaderFacts] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def open_ways(
    runtime: Runtime | None, out: Path, threads: int, context: int, stack: ExitStack
) -> list[Way]:
    """The runtime as it is checked, and then as it is also checked, where there is such a way; none
    without a runtime."""
    if runtime is None:
        return []
    other = getattr(runtime, "also_checked", None)
    named = [(runtime.name, runtime)]
    if other is not None:
        named.append((f"{runtime.name}, {other.label}", other))
    return [
        Way(
            name,
            one,
            stack.enter_context(Guarded.open(one, out, threads=threads, context=context)),
        )
        for name, one in named
    ]


@dataclass(frozen=True, slots=True)
class Measured:
    """What is known of one way to run the file; nothing where it failed, or there is none."""

    name: str = ""
    failure: str = ""
    adds: Distance | None = None
    total: Distance | None = None
    noise: Noise | None = None


def _measured(way: Way, floor: Sequence[Rows]) -> Measured:
    failure = way.session.failure
    if failure:
        return Measured(way.name, failure)
    adds, total = (_summary(rows, intervals=True) for rows in (way.adds, way.total))
    return Measured(way.name, "", adds, total, _noise(way, floor))


class Judged:
    """Distances of a check, and what is wrong, causes first."""

    def __init__(self, ways: Sequence[Way], found: Found) -> None:
        self.quantization = summarise(found.quantization, intervals=True)
        self.floor = _summary(found.floor)
        self.as_told = _summary(found.as_told, intervals=True)
        measured = [_measured(way, found.floor) for way in ways]
        self.first = measured[0] if measured else Measured()
        self.also = _other(ways[1], measured[1]) if len(ways) > 1 else None
        self.findings = sorted(
            (
                *found.findings,
                *verdict.loader_problems(found.loaders),
                *verdict.token_faults(found.tokens),
                *(
                    problem
                    for one in measured
                    for problem in verdict.runtime_failure(one.name, one.failure)
                ),
                *verdict.broken_logits("file as decoded", self.quantization),
                *verdict.broken_logits("file as decoded, activations rounded", self.as_told),
                *(
                    problem
                    for one in measured
                    for problem in (
                        *verdict.broken_logits(one.name, one.adds),
                        *verdict.runtime_noise(one.name, one.noise, found.block),
                    )
                ),
            ),
            key=lambda one: STAGES.index(one.stage),
        )

    @property
    def subject(self) -> Distance:
        """From the source to what a user gets, as far as it is known: what gates are about."""
        return self.first.total or self.as_told or self.quantization

    def gated(
        self, gates: Gates, size: int, speed: BenchReport | None, windows: int
    ) -> tuple[Judgement, ...]:
        """Each gate of `gates`; those about text also of the other way to run the file."""
        found = judge(gates, distance=self.subject, size=size, speed=speed, windows=windows)
        if self.also is None or self.also.total is None:
            return found
        label, total = self.also.label, self.also.total
        other = judge(gates.only("text"), distance=total, size=size, speed=None, windows=windows)
        return *found, *(
            replace(one, gate=f"{one.gate}, {label}", told=f"{label}: {one.told}") for one in other
        )


def _other(way: Way, measured: Measured) -> OtherWay:
    label = str(getattr(way.runtime, "label", way.name))
    return OtherWay(label, measured.adds, measured.total, measured.noise)


def _summary(parts: Sequence[Rows], *, intervals: bool = False) -> Distance | None:
    return summarise(parts, intervals=intervals) if parts else None


def _noise(way: Way, floors: Sequence[Rows]) -> Noise | None:
    """The runtime's share and the expected one, both over the first windows."""
    count = len(way.expected)
    if not count:
        return None
    expected, floor = summarise(way.expected), _summary(floors[:count])
    adds, beyond = summarise(way.adds[:count]), summarise(way.beyond)
    return Noise(count, adds, expected, beyond, floor, verdict.noise_limit(expected, floor))
