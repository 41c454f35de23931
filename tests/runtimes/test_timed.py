"""Rates are of the runs that count, of all sequences together."""

from __future__ import annotations

import itertools
import time

import pytest

from qconvert.runtimes.runtime import Throughput
from qconvert.runtimes.timed import of_median, seconds, throughput


def test_the_first_run_warms_up() -> None:
    """And what a work says that it took is what counts."""
    took = iter([100.0, 1.0, 4.0, 2.0])
    written = iter([9.0, 0.5, 0.5, 0.5])
    told = throughput(
        lambda: next(took), lambda: next(written), prompt=8, generate=4, repetitions=3, threads=2,
        batch=64, sequences=3, on_cpu=False,
    )  # fmt: skip
    found = Throughput(**told)
    assert found.prompt_tokens_per_s == 3 * 8 / 2
    assert found.prompt_spread == (3 * 8 / 4, 3 * 8 / 1)
    assert found.generate_tokens_per_s == 3 * 4 / 0.5
    assert (found.repetitions, found.sequences, found.batch, found.threads) == (3, 3, 64, 2)
    assert found.cpu_share is None
    assert (found.first_token_s, found.first_token_spread) == (2, (1, 4))  # of all three prompts
    assert found.prompt_rates == (3 * 8 / 1, 3 * 8 / 4, 3 * 8 / 2)
    assert found.generate_rates == (3 * 4 / 0.5,) * 3
    with pytest.raises(StopIteration):
        next(took)


def test_a_warm_model_is_not_warmed_again() -> None:
    took = iter([2.0, 4.0])
    told = throughput(
        lambda: next(took), lambda: 1.0, prompt=8, generate=4, repetitions=2, threads=1, batch=8,
        warm=False,
    )  # fmt: skip
    assert told["prompt_rates"] == (4.0, 2.0)
    assert told["repetitions"] == 2


def test_the_interval_of_a_median_misses_it_no_more_often_than_it_says() -> None:
    """Counted: of all ways in which draws may fall above and below the median."""
    for count in range(1, 14):
        low, high = of_median([float(one) for one in range(count)][::-1])
        left_out = int(low)
        assert high == count - 1 - left_out
        heads = [sum(throws) for throws in itertools.product((0, 1), repeat=count)]

        def missed(k: int, heads: list[int] = heads, count: int = count) -> float:
            return sum(one <= k or one >= count - k for one in heads) / 2**count

        assert left_out == 0 or missed(left_out) <= 0.05
        assert missed(left_out + 1) > 0.05  # no narrower one would do


def test_work_that_says_nothing_is_timed() -> None:
    told = throughput(
        lambda: time.sleep(0.01), lambda: time.sleep(0.01), prompt=1, generate=1, repetitions=2,
        threads=1, batch=1,
    )  # fmt: skip
    assert 0 < told["prompt_tokens_per_s"] <= 100
    assert told["cpu_share"] < 1
    assert seconds(lambda: time.sleep(0.01)) >= 0.01
