"""Rates are of the runs that count, of all sequences together."""

from __future__ import annotations

import time

import pytest

from qconvert.runtimes.runtime import Throughput
from qconvert.runtimes.timed import seconds, throughput


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
    with pytest.raises(StopIteration):
        next(took)


def test_work_that_says_nothing_is_timed() -> None:
    told = throughput(
        lambda: time.sleep(0.01), lambda: time.sleep(0.01), prompt=1, generate=1, repetitions=2,
        threads=1, batch=1,
    )  # fmt: skip
    assert 0 < told["prompt_tokens_per_s"] <= 100
    assert told["cpu_share"] < 1
    assert seconds(lambda: time.sleep(0.01)) >= 0.01
