"""PASS, FAIL and INCONCLUSIVE, and what is said to decide."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qconvert.runtimes.findings import (
    BenchReport,
    CheckReport,
    FileFacts,
    Finding,
    Interval,
    Judgement,
    RuntimeFacts,
    Speedup,
    Verdict,
)
from qconvert.runtimes.gate.figures import Figure
from qconvert.runtimes.gate.gates import BY_KEY, GATES, Gate, Gates
from qconvert.runtimes.gate.judge import judge, needed_count, rounded_up, side, verdict_of
from qconvert.runtimes.measure import Distance, Rows, summarise
from qconvert.runtimes.runtime import Throughput

ORDER = ("FAIL", "INCONCLUSIVE", "PASS")
THROUGHPUT = Throughput(
    600.0, 100.0, 512, 64, 2, 512, 5, (590.0, 610.0), (95.0, 104.0), first_token_s=0.8,
    first_token_interval=(0.75, 0.9),
)  # fmt: skip
SPEED = BenchReport(
    FileFacts("a.gguf", 1, 10**8, 5.0, {}), RuntimeFacts("r", "r 1", 2), THROUGHPUT, 0.5,
    211_000_000, "a processor", 0.0, (),
    speedups=(Speedup(512, 1, Interval(0.9, 0.85, 0.95), Interval(1.6, 1.45, 1.8)),),
)  # fmt: skip


def one(
    gates: Gates, distance: Distance | None = None, speed: BenchReport | None = None
) -> Judgement:
    found = judge(gates, distance=distance, size=143_565_312, speed=speed, windows=8)
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(
    ("limit", "verdict", "piece"),
    [
        (0.05, "PASS", "at most 0.05 nats is asked for"),
        (0.03, "FAIL", "more than 0.03 nats"),
        (0.045, "INCONCLUSIVE", "tokens would decide (4,088 were measured): --windows"),
        (0.044, "INCONCLUSIVE", "not even 10,000,000 tokens would decide"),
        (0.0484, "PASS", "0.0396 to 0.0484 nats"),
    ],
)
def test_a_limit_on_either_side_of_the_interval(
    report: CheckReport, limit: float, verdict: str, piece: str
) -> None:
    found = one(Gates(max_kl=limit), report.quantization)
    assert (found.gate, found.limit, found.verdict) == ("max-kl", limit, verdict)
    assert found.found.value == 0.044
    assert piece in found.told


def test_what_is_said_to_decide_decides() -> None:
    """Where the figure is the truth, that many tokens decide in 8 of 10 texts, and as many as were
    measured in few."""
    decided, before, tried = 0, 0, 20
    for seed in range(tried):
        chance = np.random.default_rng(seed)
        few = drawn(4, chance)
        assert few.intervals is not None
        interval = moved(few.intervals.kl_mean, math.exp(-3.5 + 0.5))
        few = replace(few, intervals=replace(few.intervals, kl_mean=interval))
        limit = interval.value + 0.7 * (interval.high - interval.value)
        (found,) = judge(Gates(max_kl=limit), distance=few, size=0, speed=None, windows=4)
        assert found.verdict == "INCONCLUSIVE"
        told = re.search(r"about ([\d,]+) tokens .* --windows (\d+)", found.told)
        assert told is not None
        assert int(told[1].replace(",", "")) > 4 * 255
        more = int(told[2])
        assert 8 < more <= 20
        decided += one(Gates(max_kl=limit), drawn(more, chance)).verdict == "PASS"
        before += one(Gates(max_kl=limit), drawn(4, chance)).verdict == "PASS"
    assert decided >= 0.6 * tried
    assert before <= 0.5 * tried


def moved(interval: Interval, value: float) -> Interval:
    by = value - interval.value
    return Interval(value, interval.low + by, interval.high + by)


def drawn(windows: int, chance: np.random.Generator) -> Distance:
    parts = []
    for _ in range(windows):
        kl, none = chance.lognormal(-3.5, 1.0, 255), np.zeros(255)
        zeros = np.zeros(255, np.intp)
        parts.append(Rows(kl, none, none, chance.random(255) < 0.9, 0, zeros, zeros))
    return summarise(parts, intervals=True)


FINITE = st.floats(0, 1e3)


@given(st.tuples(FINITE, FINITE, FINITE).map(sorted), FINITE, FINITE, st.booleans())
def test_a_looser_limit_is_never_judged_worse(
    ends: list[float], a: float, b: float, most: bool
) -> None:
    found = Interval(ends[1], ends[0], ends[2])
    tight, loose = (min(a, b), max(a, b)) if most else (max(a, b), min(a, b))
    assert ORDER.index(side(most, tight, found)) <= ORDER.index(side(most, loose, found))


@given(st.tuples(FINITE, FINITE, FINITE).map(sorted), FINITE, st.booleans())
def test_inconclusive_is_a_limit_inside_the_interval(
    ends: list[float], limit: float, most: bool
) -> None:
    found = Interval(ends[1], ends[0], ends[2])
    verdict = side(most, limit, found)
    assert (verdict == "INCONCLUSIVE") <= (found.low <= limit <= found.high)
    if found.low < limit < found.high:
        assert verdict == "INCONCLUSIVE"


@given(st.floats(0.04, 0.048), st.integers(1, 10**6))
def test_more_is_needed_than_was_measured(limit: float, count: int) -> None:
    figure = Figure(Interval(0.044, 0.0396, 0.0484), count, "tokens")
    if figure.found.low < limit < figure.found.high:
        assert needed_count(limit, figure) >= 2 * count * (1 - 1e-9)


@given(st.floats(1, 1e12))
def test_counts_are_rounded_up_to_two_digits(count: float) -> None:
    found = rounded_up(count)
    assert count <= found <= 1.1 * count + 1
    assert len(str(found).rstrip("0")) <= 3


def test_the_same_data_is_judged_the_same_each_time() -> None:
    gates = Gates(max_kl=0.05, max_kl_p99=0.3, min_top1=0.9, max_ppl_ratio=1.0)
    first, second = (
        judge(gates, distance=drawn(4, np.random.default_rng(1)), size=1, speed=None)
        for _ in range(2)
    )
    assert first == second


def test_a_size_is_exact() -> None:
    assert one(Gates(max_size=143_565_312)).verdict == "PASS"
    found = one(Gates(max_size=143_565_311))
    assert found.verdict == "FAIL"
    assert found.told == "the size is 143.57 MB; more than 143.57 MB, by 1"


@pytest.mark.parametrize(
    ("gates", "verdict"),
    [
        (Gates(min_speedup=1.4), "PASS"),
        (Gates(min_speedup=1.5), "INCONCLUSIVE"),
        (Gates(min_prompt_speedup=1.0), "FAIL"),
        (Gates(min_tokens_per_s=95), "PASS"),
        (Gates(min_tokens_per_s=105), "FAIL"),
        (Gates(min_prompt_tokens_per_s=600), "INCONCLUSIVE"),
        (Gates(max_first_token_s=1.0), "PASS"),
        (Gates(max_first_token_s=0.7), "FAIL"),
        (Gates(max_load_s=0.5), "PASS"),
        (Gates(max_load_s=0.4), "FAIL"),
        (Gates(max_memory=211e6), "PASS"),
        (Gates(max_memory=210e6), "FAIL"),
    ],
)
def test_gates_of_speed(gates: Gates, verdict: str) -> None:
    assert one(gates, speed=SPEED).verdict == verdict


def test_repetitions_decide_speed() -> None:
    found = one(Gates(min_speedup=1.5), speed=SPEED)
    assert "about 23 repetitions would decide (5 were timed)" in found.told
    twice = replace(SPEED, throughput=replace(THROUGHPUT, repetitions=2))
    found = one(Gates(min_speedup=0.1), speed=twice)
    assert found.verdict == "INCONCLUSIVE"
    assert "about 5 repetitions would decide (2 were timed)" in found.told
    assert one(Gates(min_speedup=2.0), speed=twice).verdict == "INCONCLUSIVE"


@pytest.mark.parametrize("gate", GATES, ids=lambda gate: gate.name)
def test_what_was_not_measured_does_not_pass(gate: Gate) -> None:
    if gate.basis == "file":
        return
    found = one(Gates(**{gate.key: 0.5}))
    assert found.verdict == "INCONCLUSIVE"
    assert math.isnan(found.found.value)
    assert "is not known" in found.told


def test_a_runtime_without_a_first_token_is_not_judged_by_it() -> None:
    silent = replace(SPEED, throughput=replace(THROUGHPUT, first_token_s=None), speedups=())
    assert one(Gates(max_first_token_s=1.0), speed=silent).verdict == "INCONCLUSIVE"
    assert "unquantized" in one(Gates(min_speedup=1.0), speed=silent).told


def test_a_tail_that_has_no_end_says_how_many_tokens_show_it(report: CheckReport) -> None:
    assert report.quantization.intervals is not None
    open_ = replace(report.quantization.intervals, kl_p999=Interval(0.4, 0.3, math.inf))
    distance = replace(report.quantization, positions=1022, intervals=open_)
    found = one(Gates(max_kl_p999=5.0), distance)
    assert found.verdict == "INCONCLUSIVE"
    assert "(0.3 nats or more)" in found.told
    assert "about 6,000 tokens would decide (1,022 were measured): --windows 47" in found.told
    assert one(Gates(max_kl_p999=0.2), distance).verdict == "FAIL"


def test_no_finite_position_passes_nothing(report: CheckReport) -> None:
    nothing = replace(report.quantization, kl_mean=math.nan, intervals=None)
    assert one(Gates(max_kl=1.0), nothing).verdict == "INCONCLUSIVE"


def test_a_fault_comes_before_doubt_and_doubt_before_a_pass() -> None:
    def said(verdict: Verdict) -> Judgement:
        return Judgement("max-kl", 1.0, Interval(1, 1, 1), verdict, "")

    fault = Finding("bytes", "a", "b")
    assert verdict_of([], []) == "PASS"
    assert verdict_of([], [said("PASS")]) == "PASS"
    assert verdict_of([], [said("PASS"), said("INCONCLUSIVE")]) == "INCONCLUSIVE"
    assert verdict_of([], [said("INCONCLUSIVE"), said("FAIL")]) == "FAIL"
    assert verdict_of([fault], [said("INCONCLUSIVE")]) == "FAIL"
    assert verdict_of([fault], []) == "FAIL"


def test_gates_are_judged_in_their_order(report: CheckReport) -> None:
    gates = Gates(**{gate.key: 0.5 for gate in GATES})
    found = judge(gates, distance=report.quantization, size=1, speed=SPEED)
    assert [one.gate for one in found] == [gate.name for gate in GATES]
    assert all(BY_KEY[one.gate.replace("-", "_")].figure in one.told for one in found)
