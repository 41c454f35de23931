"""Rates of an output in its runtime, beside those of the unquantized model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from qconvert.runtimes.findings import BenchReport, Interval
from qconvert.runtimes.page.svg import bar, chart, element, known, line, share, text
from qconvert.runtimes.page.words import Format, count, rate, seconds, span, times, wide
from qconvert.runtimes.runtime import Throughput

ROW = 58  # pixels


@dataclass(frozen=True, slots=True)
class Timed:
    """One thing that was timed, of the output and of the unquantized model."""

    kind: str  # rows of one kind share their scale
    label: str
    which: str  # what tells it from others of its kind
    terms: str
    found: Interval
    plain: Interval | None
    gain: Interval | None  # how many times as fast as unquantized
    shown: Format
    unit: str


def timed(speed: BenchReport) -> list[Timed]:
    """Prompt, generation and first token, for each length of the prompt and number of
    sequences."""
    return list(_timed(speed))


def _timed(speed: BenchReport) -> Iterator[Timed]:
    same = () if speed.beside is None else _batches(speed.beside)
    beside = {(one.prompt_tokens, one.sequences): one for one in same}
    lengths = len({one.prompt_tokens for one in _batches(speed)})
    gains = {(one.prompt_tokens, one.sequences): one for one in speed.speedups}
    for one in _batches(speed):
        key = (one.prompt_tokens, one.sequences)
        other, gain = beside.get(key), gains.get(key)
        at_once = f", {one.sequences} at once" if one.sequences > 1 else ""
        length = f", {one.prompt_tokens:,} tokens" if lengths > 1 else ""
        which = f"{length}{at_once}".removeprefix(", ")
        tokens = f"{count(one.prompt_tokens, 'token')}{at_once}"
        behind = f"{count(one.generate_tokens, 'token')}, from an empty context"
        for kind, terms, read, times_as_fast in (
            ("prompt", tokens, reading, None if gain is None else gain.prompt),
            ("generation", behind, writing, None if gain is None else gain.generate),
        ):
            plain = None if other is None else read(other)
            yield Timed(kind, kind.capitalize(), which, terms, read(one), plain, times_as_fast,
                        rate, "tokens/s")  # fmt: skip
        first = first_token(one)
        if first is not None:
            plain = None if other is None else first_token(other)
            yield Timed(
                "first", "First token", which, f"after {tokens}", first, plain, None, seconds, ""
            )


def _batches(speed: BenchReport) -> tuple[Throughput, ...]:
    return speed.batches or (speed.throughput,)


def reading(one: Throughput) -> Interval:
    """Tokens per second of the prompt."""
    return Interval(one.prompt_tokens_per_s, *(one.prompt_interval or one.prompt_spread))


def writing(one: Throughput) -> Interval:
    """Tokens per second of generation."""
    return Interval(one.generate_tokens_per_s, *(one.generate_interval or one.generate_spread))


def first_token(one: Throughput) -> Interval | None:
    """Seconds."""
    if one.first_token_s is None:
        return None
    between = one.first_token_interval or one.first_token_spread
    return Interval(one.first_token_s, *(between or (one.first_token_s, one.first_token_s)))


def rates(ident: str, shown: Sequence[Timed]) -> Markup:
    """Bars from 0; below each, the unquantized model's."""
    parts, told = [], []
    scales = {row.kind: _scale(row.kind, shown) for row in shown}
    for at, row in enumerate(shown):
        top, scale = ROW * at, scales[row.kind]
        value = f"{row.shown(row.found.value)} {row.unit}".rstrip()
        gain = f", {times(row.gain.value)}" if row.gain is not None else ""
        parts.append(label(0, top + 15, row.label, row.which))
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


def label(x: float, y: float, words: str, more: str) -> Markup:
    """A name, and in a lighter hand which of several it is."""
    return element(
        "text", element("tspan", words, class_="strong"), " ", element("tspan", more),
        x=share(x), y=y,
    )  # fmt: skip


def _scale(kind: str, shown: Sequence[Timed]) -> float:
    values = [
        value
        for row in shown
        if row.kind == kind
        for value in (row.found.value, row.found.high, row.plain.value if row.plain else None)
    ]
    return max(known(values), default=1.0) * 1.02 or 1.0
