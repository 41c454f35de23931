"""How far one set of logits is from another: KL divergence, perplexity, top-1 agreement."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qconvert.runtimes.gate.intervals import Interval, of_mean, of_quantile, of_share, runs_of

ROWS = 16  # positions at a time: what is in work stays in the cache
QUANTILES = (0.5, 0.99, 0.999)


@dataclass(frozen=True, slots=True)
class Rows:
    """Per position: where `p` (the reference) and `q` say something about the next token."""

    kl: NDArray[np.float64]  # KL(p || q) in nats; NaN where either is not finite
    nll_p: NDArray[np.float64]  # -log p(next token), nats
    nll_q: NDArray[np.float64]
    agree: NDArray[np.bool_]  # both put the same token first
    broken: int  # positions with a logit that is not finite
    first_p: NDArray[np.intp]  # the token that `p` puts first
    first_q: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.kl)


@dataclass(frozen=True, slots=True)
class Intervals:
    """Where the figures of a `Distance` lie with 95 % confidence (see `gate.intervals`)."""

    kl_mean: Interval
    kl_median: Interval
    kl_p99: Interval
    kl_p999: Interval
    top1: Interval
    perplexity_ratio: Interval


@dataclass(frozen=True, slots=True)
class Distance:
    """KL(p || q) in nats and its like, over all positions that predict a token of the text; `p` is
    the reference."""

    positions: int
    kl_mean: float
    kl_median: float
    kl_p99: float
    kl_p999: float
    kl_max: float
    perplexity_p: float
    perplexity_q: float
    perplexity_ratio: float  # q over p
    top1: float  # share of positions, 0 to 1
    broken: int  # positions with logits that are not finite, left out of all of the above
    intervals: Intervals | None = None  # None: not asked for, or nothing finite


def compare(p: NDArray[np.float32], q: NDArray[np.float32], tokens: Sequence[int]) -> Rows:
    """Compare logits [n, vocab] of the same `tokens` [n], each position with its next token.

    The last position predicts nothing that is known: n - 1 remain. `ValueError` when the shapes
    differ.
    """
    if p.shape != q.shape or len(p) != len(tokens):
        raise ValueError(f"logits {p.shape} and {q.shape} for {len(tokens)} tokens")
    following = np.asarray(tokens[1:], np.intp)
    blocks = [
        _compare_block(p[start:stop], q[start:stop], following[start:stop])
        for start, stop in _blocks(len(following))
    ]
    return join(blocks)


def join(parts: Sequence[Rows]) -> Rows:
    """The positions of several comparisons, one after another."""
    return Rows(
        np.concatenate([part.kl for part in parts]),
        np.concatenate([part.nll_p for part in parts]),
        np.concatenate([part.nll_q for part in parts]),
        np.concatenate([part.agree for part in parts]),
        sum(part.broken for part in parts),
        np.concatenate([part.first_p for part in parts]),
        np.concatenate([part.first_q for part in parts]),
    )


def summarise(parts: Sequence[Rows], *, intervals: bool = False) -> Distance:
    """One `Distance` over the positions of all `parts` that are finite. `parts` are windows of a
    text: with `intervals`, neighbours within one are not taken as independent."""
    rows = join(parts)
    good = np.isfinite(rows.kl)
    if not good.any():
        return _nothing(len(rows), rows.broken)
    kl, nll_p, nll_q = rows.kl[good], rows.nll_p[good], rows.nll_q[good]
    ordered = np.sort(kl)
    median, p99, p999 = (float(np.quantile(ordered, share)) for share in QUANTILES)
    found = None
    if intervals:
        windows = [int(np.isfinite(part.kl).sum()) for part in parts]
        found = _intervals(windows, kl, ordered, nll_q - nll_p, rows.agree[good])
    return Distance(
        positions=len(rows),
        kl_mean=float(kl.mean()),
        kl_median=median,
        kl_p99=p99,
        kl_p999=p999,
        kl_max=float(ordered[-1]),
        perplexity_p=_exp(float(nll_p.mean())),
        perplexity_q=_exp(float(nll_q.mean())),
        perplexity_ratio=_exp(float((nll_q - nll_p).mean())),
        top1=float(rows.agree[good].mean()),
        broken=rows.broken,
        intervals=found,
    )


def _intervals(
    windows: Sequence[int],
    kl: NDArray[np.float64],
    ordered: NDArray[np.float64],
    differences: NDArray[np.float64],
    agree: NDArray[np.bool_],
) -> Intervals:
    """All from the same draws. `differences`: of -log of the probability of each next token."""
    runs = runs_of(windows)
    mean, ratio = of_mean(runs, kl), of_mean(runs, differences)
    median, p99, p999 = (of_quantile(runs, kl, ordered, share) for share in QUANTILES)
    return Intervals(
        kl_mean=Interval(mean.value, max(mean.low, 0.0), mean.high),
        kl_median=median,
        kl_p99=p99,
        kl_p999=p999,
        top1=of_share(runs, agree),
        perplexity_ratio=Interval(_exp(ratio.value), _exp(ratio.low), _exp(ratio.high)),
    )


def _nothing(positions: int, broken: int) -> Distance:
    unknown = math.nan
    return Distance(
        positions, unknown, unknown, unknown, unknown, unknown, unknown, unknown, unknown, unknown,
        broken,
    )  # fmt: skip


def _compare_block(
    p: NDArray[np.float32], q: NDArray[np.float32], following: NDArray[np.intp]
) -> Rows:
    """KL(p || q) = sum of p (a - b) - log Zp + log Zq, with a, b the logits.

    exp in float32 (its rounding leaves some 1e-8 nats, a fifth of the time), sums in float64.
    """
    good = np.asarray(np.isfinite(p).all(axis=-1) & np.isfinite(q).all(axis=-1))
    if not good.all():
        p, q = (np.where(good[:, None], logits, np.float32(0)) for logits in (p, q))
    exp_p, sum_p, log_p = _exponentials(p)
    _, _, log_q = _exponentials(q)
    mean = np.einsum("ij,ij->i", exp_p, p - q, dtype=np.float64) / sum_p
    at = np.arange(len(following))
    first_p, first_q = p.argmax(axis=-1), q.argmax(axis=-1)
    return Rows(
        np.where(good, np.maximum(mean - log_p + log_q, 0.0), np.nan),
        log_p - p[at, following],
        log_q - q[at, following],
        np.equal(first_p, first_q),
        int((~good).sum()),
        first_p,
        first_q,
    )


def _exponentials(
    logits: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]:
    """Per row: exp(logit - largest), the sum of that, and log of the sum of exp(logit)."""
    largest = logits.max(axis=-1, keepdims=True)
    powers = np.exp(logits - largest)
    total = powers.sum(axis=-1, dtype=np.float64)
    return powers, total, largest[:, 0].astype(np.float64) + np.log(total)


def _blocks(n: int) -> Iterator[tuple[int, int]]:
    for start in range(0, n, ROWS):
        yield start, min(start + ROWS, n)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
