from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from qconvert.runtimes.gate.positions import histogram, worst
from qconvert.runtimes.measure import Rows


def rows(kl: Sequence[float]) -> Rows:
    count = len(kl)
    first = np.arange(count)
    none = np.zeros(count)
    return Rows(np.array(kl, float), none, none, none > 0, 0, first + 100, first + 200)


def decode(tokens: Sequence[int]) -> str:
    return " ".join(map(str, tokens))


def test_each_finite_position_is_counted_once() -> None:
    found = histogram([rows([0.0, 1e-9, 1e-6, 0.5]), rows([np.nan, 3.0, 10.0, 1e4])])
    assert sum(found.counts) == 7
    assert len(found.edges) == len(found.counts) + 1
    assert found.counts[0] == 3
    assert found.counts[-1] == 2
    assert found.edges[0] == pytest.approx(1e-6)
    assert found.edges[-1] == pytest.approx(10)


def test_counts_lie_between_their_edges() -> None:
    kl = np.random.default_rng(0).lognormal(-3, 1.5, 500)
    found = histogram([rows(list(kl))])
    expected, _ = np.histogram(kl, np.array(found.edges))
    assert list(found.counts) == list(expected)


def test_the_worst_positions_in_context() -> None:
    windows = [list(range(10, 15)), list(range(20, 25))]
    found = worst([rows([0.1, 0.2, np.nan, 0.0]), rows([0.0, 0.0, 0.7, 0.2])], windows, decode, 3)
    assert [(one.window, one.position, one.kl) for one in found] == [
        (1, 2, 0.7), (0, 1, 0.2), (1, 3, 0.2),
    ]  # fmt: skip
    first = found[0]
    assert (first.before, first.token) == ("20 21 22", "23")
    assert (first.source, first.output) == ("102", "202")


def test_no_more_than_there_are() -> None:
    assert len(worst([rows([0.1, np.nan])], [[1, 2, 3]], decode, 10)) == 1
