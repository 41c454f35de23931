"""The figures of a `Distance` with their intervals: the one place of the page, and of the console,
that knows its fields."""

from __future__ import annotations

from qconvert.runtimes.findings import CheckReport, Interval
from qconvert.runtimes.measure import Distance


def exact(value: float) -> Interval:
    """A figure whose interval is itself, or not known."""
    return Interval(value, value, value)


def kl_mean(one: Distance) -> Interval:
    """Nats."""
    return exact(one.kl_mean) if one.intervals is None else one.intervals.kl_mean


def kl_tail(one: Distance) -> list[tuple[str, Interval]]:
    """(what, nats): median, 99th and 99.9th percentile."""
    if one.intervals is None:
        values = (exact(one.kl_median), exact(one.kl_p99), exact(one.kl_p999))
    else:
        values = (one.intervals.kl_median, one.intervals.kl_p99, one.intervals.kl_p999)
    return list(zip(("median", "p99", "p99.9"), values, strict=True))


def perplexity_ratio(one: Distance) -> Interval:
    """Of the output over the source."""
    if one.intervals is None:
        return exact(one.perplexity_ratio)
    return one.intervals.perplexity_ratio


def top1(one: Distance) -> Interval:
    """Share of positions, 0 to 1."""
    return exact(one.top1) if one.intervals is None else one.intervals.top1


def gated(report: CheckReport) -> Distance:
    """The distance that gates, the histogram and the worst tokens are about: what a user gets."""
    return report.total or report.as_told or report.quantization
