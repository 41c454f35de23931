"""Single positions of a text: how KL is spread over them, and where it is largest."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from qconvert.runtimes.findings import Histogram, WorstToken
from qconvert.runtimes.measure import Rows

LOWEST, HIGHEST = -6, 1  # powers of ten, nats
BINS = 4  # by power of ten
BEFORE = 24  # tokens shown in front of a position

Decode = Callable[[Sequence[int]], str]


def histogram(parts: Sequence[Rows]) -> Histogram:
    """Positions that are finite by KL, between 1e-6 and 10 nats in steps of 10 ** (1 / BINS); what
    lies outside is counted at the ends."""
    edges = np.logspace(LOWEST, HIGHEST, (HIGHEST - LOWEST) * BINS + 1)
    kl = np.concatenate([part.kl for part in parts])
    inside = np.clip(kl[np.isfinite(kl)], edges[0], np.nextafter(edges[-1], 0))
    counts = np.bincount(np.searchsorted(edges, inside, "right") - 1, minlength=len(edges) - 1)
    return Histogram(tuple(map(float, edges)), tuple(map(int, counts)))


def worst(
    parts: Sequence[Rows], windows: Sequence[Sequence[int]], decode: Decode, count: int = 10
) -> tuple[WorstToken, ...]:
    """The `count` positions with the largest KL, furthest first; of equal ones the first.

    `parts[i]` is over the tokens `windows[i]`; `decode` gives the text of tokens.
    """
    found = [
        (-float(part.kl[at]), window, int(at))
        for window, part in enumerate(parts)
        for at in _largest(part, count)
    ]
    return tuple(
        _told(parts[window], windows[window], window, at, decode)
        for _, window, at in sorted(found)[:count]
    )


def _largest(part: Rows, count: int) -> Sequence[int]:
    kl = np.where(np.isfinite(part.kl), part.kl, -1.0)
    order = np.argsort(-kl, kind="stable")[:count]
    return [int(at) for at in order if kl[at] >= 0]


def _told(part: Rows, tokens: Sequence[int], window: int, at: int, decode: Decode) -> WorstToken:
    """Position `at` predicts token `at + 1`."""
    return WorstToken(
        window=window,
        position=at,
        before=decode(tokens[max(at + 1 - BEFORE, 0) : at + 1]),
        token=decode([tokens[at + 1]]),
        kl=float(part.kl[at]),
        source=decode([int(part.first_p[at])]),
        output=decode([int(part.first_q[at])]),
    )
