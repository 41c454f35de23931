"""Rates of an output in its runtime, beside those of the unquantized model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from qconvert.runtimes.findings import BenchReport, Interval
from qconvert.runtimes.page import figures
from qconvert.runtimes.page.svg import bar, chart, known, line, text
from qconvert.runtimes.page.words import Format, count, rate, seconds, span, times, wide
from qconvert.runtimes.runtime import Throughput

ROW = 58  # pixels


@dataclass(frozen=True, slots=True)
class Timed:
    """One thing that was timed, of the output and of the unquantized model."""

    kind: str  # rows of one kind share their scale
    label: str
    terms: str
    found: Interval
    plain: Interval | None
    shown: Format
    unit: str
    rising: bool = True  # more is better

    @property
    def gain(self) -> float | None:
        """How many times better than unquantized."""
        if self.plain is None or not known([self.found.value, self.plain.value]):
            return None
        better, worse = (self.found, self.plain) if self.rising else (self.plain, self.found)
        return better.value / worse.value if worse.value else None


def timed(speed: BenchReport) -> list[Timed]:
    """Prompt, generation and first token, for each number of sequences."""
    return list(_timed(speed))


def _timed(speed: BenchReport) -> Iterator[Timed]:
    without = unquantized(speed)
    same = () if without is None else _batches(without)
    beside = {(one.sequences, one.prompt_tokens): one for one in same}
    for one in _batches(speed):
        other = beside.get((one.sequences, one.prompt_tokens))
        at_once = f", {one.sequences} at once" if one.sequences > 1 else ""
        for kind, read, tokens in (
            ("prompt", _prompt, one.prompt_tokens),
            ("generation", _generation, one.generate_tokens),
        ):
            plain = None if other is None else read(other)
            label = f"{kind.capitalize()}{at_once}"
            yield Timed(kind, label, count(tokens, "token"), read(one), plain, rate, "tokens/s")
        first = first_token(one)
        if first is not None:
            plain = None if other is None else first_token(other)
            label, terms = f"First token{at_once}", f"after {count(one.prompt_tokens, 'token')}"
            yield Timed("first", label, terms, first, plain, seconds, "", False)


def _batches(speed: BenchReport) -> tuple[Throughput, ...]:
    return speed.batches or (speed.throughput,)


def unquantized(speed: BenchReport) -> BenchReport | None:
    found = getattr(speed, "beside", None)
    return found if isinstance(found, BenchReport) else None


def _prompt(one: Throughput) -> Interval:
    return Interval(one.prompt_tokens_per_s, *one.prompt_spread)


def _generation(one: Throughput) -> Interval:
    return Interval(one.generate_tokens_per_s, *one.generate_spread)


def first_token(one: Throughput) -> Interval | None:
    """Seconds."""
    value = getattr(one, "first_token_s", None)
    if value is None:
        return None
    spread = getattr(one, "first_token_spread", None)
    return Interval(value, *spread) if spread else figures.exact(value)


def rates(ident: str, shown: Sequence[Timed]) -> Markup:
    """Bars from 0; below each, the unquantized model's."""
    parts, told = [], []
    scales = {row.kind: _scale(row.kind, shown) for row in shown}
    for at, row in enumerate(shown):
        top, scale = ROW * at, scales[row.kind]
        value = f"{row.shown(row.found.value)} {row.unit}".rstrip()
        gain = f"  {times(row.gain)}" if row.gain is not None else ""
        parts.append(text(0, top + 15, row.label, class_="strong"))
        parts.append(text(1, top + 15, f"{value}{gain}", "end", class_="strong"))
        y = top + 23
        parts.append(bar(0, 1, y, 16, rx=3, class_="track"))
        if known([row.found.value]):
            parts.append(bar(0, row.found.value / scale, y, 16, rx=3, class_="rate blue"))
        if wide(row.found):
            low, high = row.found.low / scale, row.found.high / scale
            parts.append(line(low, y + 8, high, y + 8, class_="whisker ink"))
        if row.plain is not None and known([row.plain.value]):
            parts.append(bar(0, row.plain.value / scale, y + 18, 6, rx=2, class_="rate grey"))
        ends = span(row.found, row.shown)
        told.append(f"{row.label}: {value}" + (f" ({ends})" if ends else "") + gain)
    height = ROW * len(shown)
    return chart(ident, "Rates", "; ".join(told), height, *parts)


def _scale(kind: str, shown: Sequence[Timed]) -> float:
    values = [
        value
        for row in shown
        if row.kind == kind
        for value in (row.found.value, row.found.high, row.plain.value if row.plain else None)
    ]
    return max(known(values), default=1.0) * 1.02 or 1.0
