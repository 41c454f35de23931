"""When does a runtime leave the noise?"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from qconvert.runtimes.findings import Noise
from qconvert.runtimes.measure import Distance, Rows, summarise
from qconvert.runtimes.verdict import leaves_noise, noise_limit, runtime_noise


def distance(median: float, tail: float = 0.0) -> Distance:
    """Over 100 positions, of which one has `tail` nats more."""
    kl = np.full(100, median)
    kl[7] += tail
    zeros, first = np.zeros(100), np.zeros(100, np.intp)
    return summarise([Rows(kl, zeros, zeros, np.ones(100, bool), 0, first, first)])


def noise(adds: Distance) -> Noise:
    expected = distance(1e-4)
    return Noise(2, adds, expected, expected, None, noise_limit(expected, None))


@pytest.mark.parametrize(
    ("median", "tail", "leaves"),
    [
        (2.9e-4, 0.0, False),
        (3.1e-4, 0.0, True),  # at most positions
        (2.0e-4, 0.05, False),  # one loud position of a hundred
        (2.0e-4, 1.0, True),  # so loud that noise does not explain it
    ],
)
def test_most_positions_or_far_more_at_some(median: float, tail: float, leaves: bool) -> None:
    assert leaves_noise(noise(distance(median, tail))) == leaves


def test_what_is_not_finite_leaves_it() -> None:
    broken = replace(distance(1e-4), kl_mean=math.nan, kl_median=math.nan)
    assert leaves_noise(noise(broken))


def test_the_block_is_the_culprit_where_it_is_known() -> None:
    found = noise(distance(1e-2))
    assert [one.culprit for one in runtime_noise("x", found)] == ["x"]
    (known,) = runtime_noise("x", found, 7)
    assert known.culprit == "block 7"
    assert "block 7 is the first" in known.problem
