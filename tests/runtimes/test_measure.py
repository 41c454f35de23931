"""The figures against hand calculation and a literal float64 transcription."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from qconvert.runtimes.gate.intervals import Interval
from qconvert.runtimes.measure import compare, summarise


def literal(p: NDArray[np.float32], q: NDArray[np.float32]) -> NDArray[np.float64]:
    """KL(p || q) of each row, by the definition."""
    soft = []
    for logits in (p, q):
        powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
        soft.append(powers / powers.sum(axis=1, keepdims=True))
    return np.asarray((soft[0] * np.log(soft[0] / soft[1])).sum(axis=1))


def random_logits(n: int, vocab: int, scale: float, seed: int) -> NDArray[np.float32]:
    drawn = np.random.default_rng(seed).standard_normal((n, vocab)) * scale
    return drawn.astype(np.float32)


def test_kl_perplexity_and_agreement_by_hand() -> None:
    p = np.log(np.array([[1, 1, 2], [1, 1, 2], [9, 9, 9]], np.float32))
    q = np.log(np.array([[2, 1, 1], [1, 1, 2], [9, 9, 9]], np.float32))
    found = summarise([compare(p, q, [0, 2, 0])])
    # First row: 1/4 log(1/2) + 1/4 log(1) + 1/2 log(2) = log(2) / 4; second row: 0.
    assert found.positions == 2
    assert found.kl_mean == pytest.approx(math.log(2) / 8, abs=1e-7)
    assert found.kl_median == pytest.approx(math.log(2) / 8, abs=1e-7)
    assert found.kl_max == pytest.approx(math.log(2) / 4, abs=1e-7)
    # Next tokens are 2 and 0: p gives 1/2 and 1/4, q gives 1/4 and 1/4.
    assert found.perplexity_p == pytest.approx(math.sqrt(8), rel=1e-6)
    assert found.perplexity_q == pytest.approx(4, rel=1e-6)
    assert found.perplexity_ratio == pytest.approx(math.sqrt(2), rel=1e-6)
    assert found.top1 == 0.5
    assert found.broken == 0


def test_agrees_with_the_definition_over_many_blocks() -> None:
    p = random_logits(101, 777, 4.0, 0)
    q = p + random_logits(101, 777, 0.3, 1)
    found = compare(p, q, list(range(101)))
    assert len(found) == 100
    np.testing.assert_allclose(found.kl, literal(p, q)[:100], atol=1e-7, rtol=1e-5)


def test_small_divergences_survive_the_arithmetic() -> None:
    p = random_logits(64, 5000, 3.0, 2)
    q = p + random_logits(64, 5000, 1e-3, 3)
    expected = literal(p, q)[:63].mean()
    assert expected < 1e-6
    assert compare(p, q, [0] * 64).kl.mean() == pytest.approx(expected, rel=0.05)


def test_large_and_shifted_logits() -> None:
    p = random_logits(20, 50, 30.0, 4)
    same = compare(p, p + np.float32(1000), [0] * 20)
    assert same.kl.max() < 1e-4
    assert np.isfinite(compare(p * 1e3, -p * 1e3, [0] * 20).kl).all()


def test_logits_that_are_not_finite_are_counted_and_left_out() -> None:
    p, q = random_logits(10, 30, 1.0, 5), random_logits(10, 30, 1.0, 6)
    clean = compare(p, q, [0] * 10)
    q[3, 7], q[5, 0] = np.nan, np.inf
    found = compare(p, q, [0] * 10)
    assert found.broken == 2
    summary = summarise([found])
    assert summary.positions == 9
    assert summary.kl_mean == pytest.approx(np.delete(clean.kl, [3, 5]).mean())


def test_nothing_finite_gives_no_figures() -> None:
    p = random_logits(5, 8, 1.0, 7)
    found = summarise([compare(p, np.full_like(p, np.nan), [0] * 5)])
    assert found.broken == found.positions == 4
    assert math.isnan(found.kl_mean)


def test_windows_are_joined() -> None:
    p, q = random_logits(40, 30, 1.0, 8), random_logits(40, 30, 1.0, 9)
    tokens = list(range(20)) * 2
    halves = [compare(p[:20], q[:20], tokens[:20]), compare(p[20:], q[20:], tokens[20:])]
    found = summarise(halves)
    assert found.positions == 38
    assert found.kl_mean == pytest.approx(np.mean([half.kl.mean() for half in halves]))


def test_intervals_hold_the_figures_and_are_the_same_each_time() -> None:
    parts = []
    for seed in range(4):
        p = random_logits(200, 40, 2.0, seed)
        parts.append(compare(p, p + random_logits(200, 40, 0.3, 50 + seed), list(range(40)) * 5))
    found, again = (summarise(parts, intervals=True) for _ in range(2))
    assert found == again
    assert found.intervals is not None
    for name in ("kl_mean", "kl_median", "kl_p99", "kl_p999", "top1", "perplexity_ratio"):
        interval = getattr(found.intervals, name)
        assert interval.value == pytest.approx(getattr(found, name), rel=1e-12)
        assert interval.low < interval.value <= interval.high
    assert found.intervals.kl_p999.high == math.inf  # nothing is known beyond 796 positions
    assert summarise(parts).intervals is None
    assert replace(found, intervals=None) == summarise(parts)


def test_a_comparison_with_itself_has_no_width_but_for_agreement() -> None:
    """Positions that all agree leave some room for those that were not looked at."""
    p = random_logits(300, 30, 2.0, 3)
    found = summarise([compare(p, p, [1] * 300)], intervals=True).intervals
    assert found is not None
    assert (found.kl_mean.low, found.kl_mean.high) == (0.0, pytest.approx(0.0, abs=1e-12))
    assert found.perplexity_ratio == Interval(1.0, 1.0, 1.0)
    assert 0.97 < found.top1.low < 0.995
    assert found.top1.high == 1.0


def test_positions_that_are_not_finite_are_in_no_interval() -> None:
    p, q = random_logits(100, 30, 1.0, 5), random_logits(100, 30, 1.0, 6)
    cut = summarise([compare(p[:90], q[:90], [0] * 90)], intervals=True).intervals
    q[89:99, 7] = np.nan
    assert summarise([compare(p, q, [0] * 100)], intervals=True).intervals == cut


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="logits"):
        compare(np.zeros((4, 5), np.float32), np.zeros((4, 6), np.float32), [0] * 4)
