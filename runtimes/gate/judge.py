"""Is what was asked met, and how surely? PASS and FAIL are said where the whole interval is on one
side of the limit; where it straddles, what would decide is said instead."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from qconvert.runtimes.findings import BenchReport, Finding, Interval, Judgement, Verdict
from qconvert.runtimes.gate.figures import FIGURES, Figure, Measured
from qconvert.runtimes.gate.gates import Basis, Gate, Gates
from qconvert.runtimes.measure import Distance

REASONABLE = {"tokens": 10**7, "repetitions": 10**3}
"""More than that nobody measures: a whole night of a small model."""

SURELY = 2.0
"""Times the number at which the interval would just end at the limit: the figure moves as more is
measured. An interval that ends there by 2.8 errors, not 1.96, does so in 8 of 10 texts."""

ABSENT: Mapping[Basis, str] = {
    "text": "no position of the text gave a figure: see what else was found",
    "file": "the output has no size",
    "speed": "it was not timed here: check it in its runtime, with --bench",
    "beside": "it was not timed beside the unquantized model: check it in its runtime, with"
    " --bench",
}


def judge(
    gates: Gates,
    *,
    distance: Distance | None,
    size: int,
    speed: BenchReport | None,
    windows: int | None = None,
) -> tuple[Judgement, ...]:
    """A judgement of each gate that is set, in the order of `GATES`.

    `distance`: from the source to what a user gets, with its intervals; `size` in bytes;
    `windows`: how many pieces of text the distance is over, to name the option that decides. The
    same arguments give the same judgements. A gate of which nothing was measured is INCONCLUSIVE.
    """
    measured = Measured(distance, size, speed)
    return tuple(
        _judged(gate, limit, FIGURES[gate.key](measured), windows) for gate, limit in gates.asked()
    )


def verdict_of(findings: Sequence[Finding], judgements: Sequence[Judgement]) -> Verdict:
    """FAIL before INCONCLUSIVE before PASS; any finding is a FAIL."""
    said = {one.verdict for one in judgements} | ({"FAIL"} if findings else set())
    order: tuple[Verdict, ...] = ("FAIL", "INCONCLUSIVE", "PASS")
    return next((one for one in order if one in said), "PASS")


def side(most: bool, limit: float, found: Interval) -> Verdict:
    """Where the interval lies: inside the limit, outside, or on both sides."""
    if found.high <= limit if most else found.low >= limit:
        return "PASS"
    return "FAIL" if (found.low > limit if most else found.high < limit) else "INCONCLUSIVE"


def _judged(gate: Gate, limit: float, figure: Figure | None, windows: int | None) -> Judgement:
    if figure is None or math.isnan(figure.found.value):
        unknown = Interval(math.nan, math.nan, math.nan)
        told = f"{gate.figure} is not known; {ABSENT[gate.basis]}"
        return Judgement(gate.name, limit, unknown, "INCONCLUSIVE", told)
    verdict = side(gate.most, limit, figure.found)
    is_so = f"{gate.figure} is {_with_interval(gate, figure.found)}"
    asked = gate.unit.shown(limit)
    if asked == gate.unit.shown(figure.found.value) and limit != figure.found.value:
        asked += f", by {abs(limit - figure.found.value):.3g}"
    told = {
        "PASS": f"{is_so}; at {'most' if gate.most else 'least'} {asked} is asked for",
        "FAIL": f"{is_so}; {'more' if gate.most else 'less'} than {asked}",
        "INCONCLUSIVE": f"{is_so}, on both sides of {asked}; ",
    }[verdict]
    if verdict == "INCONCLUSIVE":
        told += _what_decides(gate, limit, figure, windows)
    return Judgement(gate.name, limit, figure.found, verdict, told)


def _with_interval(gate: Gate, found: Interval) -> str:
    value = gate.unit.shown(found.value)
    if found.low == found.high:
        return value
    return f"{value} ({gate.unit.between(found.low, found.high)})"


def _what_decides(gate: Gate, limit: float, figure: Figure, windows: int | None) -> str:
    """How many would bring the limit outside the interval if the figure stays where it is."""
    needed, most = needed_count(limit, figure), REASONABLE[figure.of]
    seen = f"{figure.count:,} {'were measured' if figure.of == 'tokens' else 'were timed'}"
    if needed > most:
        return (
            f"so near that not even {most:,} {figure.of} would decide ({seen}): move the gate"
            " away, or do without it"
        )
    about = rounded_up(needed)
    told = f"about {about:,} {figure.of} would decide ({seen})"
    if figure.of == "tokens" and windows:
        return f"{told}: --windows {math.ceil(windows * about / figure.count)}"
    return told


def needed_count(limit: float, figure: Figure) -> float:
    """Positions or repetitions: the width of an interval shrinks with the root of their number.
    With as many, 8 of 10 measurements would decide, if the figure is about what was found."""
    found = figure.found
    gap = abs(found.value - limit)
    half = found.high - found.value if limit > found.value else found.value - found.low
    if math.isinf(half):
        return 2.0 * max(figure.count, figure.fewest)
    return math.inf if gap == 0 else max(SURELY * figure.count * (half / gap) ** 2, figure.fewest)


def rounded_up(count: float) -> int:
    """To two digits."""
    step = int(10 ** max(math.floor(math.log10(max(count, 1))) - 1, 0))
    return math.ceil(count / step) * step
