"""Coverage over simulated text, and the parts against other ways to compute them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from qconvert.runtimes.gate import intervals
from qconvert.runtimes.gate.intervals import of_mean, of_quantile, of_share, runs_of

LENGTH = 511
WINDOWS = 8


def autoregressive(shape: tuple[int, int], kept: float, chance: np.random.Generator) -> NDArray:
    """Gaussian, variance 1, correlated by `kept` from one position to the next."""
    noise = chance.standard_normal(shape) * math.sqrt(1 - kept * kept)
    noise[:, 0] /= math.sqrt(1 - kept * kept)
    for at in range(1, shape[1]):
        noise[:, at] += kept * noise[:, at - 1]
    return noise


def simulated(windows: int, chance: np.random.Generator) -> tuple[NDArray, NDArray]:
    """KL that is skewed and correlated as it is on a real model (runs of 64 and 128 positions vary
    2.6 and 3.1 times as much as if they were independent), and whether the first token agrees."""
    shape = (windows, LENGTH)
    log = math.sqrt(0.63) * chance.standard_normal(shape)
    log += math.sqrt(0.33) * autoregressive(shape, 0.6, chance)
    log += math.sqrt(0.04) * autoregressive(shape, 0.98, chance)
    agree = chance.random(shape) > np.minimum(1, 0.12 * np.exp(0.5 * log - 0.125))
    return 0.028 * np.exp(log), agree


TRUTH_KL, TRUTH_AGREE = simulated(2000, np.random.default_rng(0))
TRUTH = {
    "mean": float(TRUTH_KL.mean()),
    "share": float(TRUTH_AGREE.mean()),
    **{str(one): float(np.quantile(TRUTH_KL, one)) for one in (0.5, 0.99, 0.999)},
}


def missed(trials: int) -> dict[str, float]:
    """Share of the trials whose interval does not hold the truth."""
    chance, counts = np.random.default_rng(1), dict.fromkeys(TRUTH, 0)
    for _ in range(trials):
        kl, agree = simulated(WINDOWS, chance)
        runs = runs_of([LENGTH] * WINDOWS)
        found = {"mean": of_mean(runs, kl.ravel()), "share": of_share(runs, agree.ravel())}
        ordered = np.sort(kl.ravel())
        for one in (0.5, 0.99, 0.999):
            found[str(one)] = of_quantile(runs, kl.ravel(), ordered, one)
        for name, interval in found.items():
            counts[name] += not interval.low <= TRUTH[name] <= interval.high
    return {name: count / trials for name, count in counts.items()}


def test_nineteen_of_twenty_intervals_hold_the_truth() -> None:
    """Of 200: a share of 0.05 varies by 0.015; 0.11 is four of that away."""
    found = missed(200)
    assert max(found.values()) <= 0.11, found
    assert found["mean"] >= 0.01, "no wider than needed"
    assert found["share"] >= 0.01, "no wider than needed"


def test_positions_taken_as_independent_would_not_hold_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: without runs the mean is missed far more often."""
    monkeypatch.setattr(intervals, "RUN", 2)
    monkeypatch.setattr(intervals, "MOST", 10**6)
    monkeypatch.setattr(intervals, "DRAWS", 100)
    assert missed(50)["mean"] > 0.15


def test_runs_stay_inside_windows_and_cover_each_position_once() -> None:
    runs = runs_of([511, 300, 0, 5, 511, 511])
    assert len(runs.of) == 511 + 300 + 5 + 511 + 511
    assert runs.lengths.sum() == len(runs.of)
    edges = np.cumsum(runs.lengths)
    assert {511, 811, 816, 1327} <= {int(edge) for edge in edges}
    assert np.diff(runs.of).min() >= 0
    assert (runs.draws.sum(axis=1) == len(runs.lengths)).all()


@pytest.mark.parametrize("windows", [[511] * 8, [1000], [31, 31], [2], [511] * 400])
def test_there_are_runs_enough_and_not_too_many(windows: list[int]) -> None:
    total, runs = sum(windows), len(runs_of(windows).lengths)
    assert min(total, intervals.FEWEST) <= runs <= 2 * intervals.MOST


def test_independent_values_give_the_interval_of_the_books() -> None:
    """Normal values, one by one: mean and share are within a tenth of what the formula says."""
    values = np.random.default_rng(2).standard_normal(1024)
    runs = runs_of([1] * 1024)
    found = of_mean(runs, values)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 / 32, rel=0.1)
    share = of_share(runs, values > 0)
    assert (share.high - share.low) / 2 == pytest.approx(1.96 * 0.5 / 32, rel=0.1)


def test_positions_that_repeat_count_once() -> None:
    """Runs of equal positions: the interval is that of the runs, not of their positions."""
    drawn = np.random.default_rng(3).standard_normal(64)
    once = of_mean(runs_of([1] * 64), drawn)
    often = of_mean(runs_of([128] * 64), np.repeat(drawn, 128))
    assert often.low == pytest.approx(once.low, rel=1e-9)
    assert often.high == pytest.approx(once.high, rel=1e-9)


def test_the_tail_is_not_known_from_few_positions() -> None:
    values = np.random.default_rng(4).random(6000)
    needed = intervals.positions_for_quantile(0.999)
    few, many = needed // 2, 2 * needed
    assert of_quantile(runs_of([few]), values[:few], np.sort(values[:few]), 0.999).high == math.inf
    found = of_quantile(runs_of([many]), values[:many], np.sort(values[:many]), 0.999)
    assert found.low < 0.999 < found.high <= 1


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_a_handful_of_positions_gives_a_wide_interval_and_no_error(count: int) -> None:
    values = np.arange(1.0, count + 1)
    found = of_mean(runs_of([count]), values)
    assert found.low <= found.value <= found.high
    assert of_share(runs_of([count]), values > 1).low < 0.5
    assert of_quantile(runs_of([count]), values, values, 0.5).low <= 1
