"""What the page says of one report: sentences, tables and pictures, ready for the template."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from qconvert.runtimes.findings import CheckReport, LoaderFacts, WorstToken
from qconvert.runtimes.page import bullet, distances, figures, histogram, layers, speed, tensors
from qconvert.runtimes.page.reasons import reasons, says
from qconvert.runtimes.page.words import (
    TIMES,
    UNKNOWN,
    base,
    count,
    megabytes,
    number,
    percent,
    ratio,
    span,
    times,
)
from qconvert.runtimes.page.words import seconds as duration

CONTEXT = 160  # letters in front of a token
TYPES = 8  # stored types that are told by name


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure of the head."""

    label: str
    value: str
    under: str = ""


def section(report: CheckReport, number_: int) -> dict[str, Any]:
    """All that the template shows of `report`; `number_`, from 1, makes its anchors its own."""
    ident = f"output-{number_}"
    distance = figures.gated(report)
    rows = distances.rows(report)
    marked = layers.culprits(report)
    return {
        "report": report,
        "ident": ident,
        "name": base(report.file.path),
        "model": base(report.model),
        "says": says(report),
        "facts": facts(report),
        "tiles": tiles(report),
        "reasons": reasons(report),
        "gates": [
            {
                "judgement": one,
                "label": bullet.shown_of(one).label,
                "found": bullet.shown_of(one).shown(one.found.value),
                "unit": bullet.shown_of(one).unit,
                "span": span(one.found, bullet.shown_of(one).shown),
                "limit": bullet.limit_told(one),
                "picture": bullet.bullet(f"{ident}-gate-{at}", one),
            }
            for at, one in enumerate(report.judgements)
        ],
        "distances": [_distance(row) for row in rows],
        "ladder": distances.ladder(f"{ident}-ladder", rows),
        "histogram": report.histogram
        and histogram.histogram(f"{ident}-histogram", report.histogram, distance),
        "layers": report.layers
        and layers.layer_chart(f"{ident}-layers", report.layers, marked),
        "legend": layers.legend(report.layers),
        "tensors": [
            {"tensor": one, "gauge": tensors.gauge(one)} for one in tensors.furthest(report.tensors)
        ],
        "worst": [_token(one) for one in report.worst],
        "speed": _speed(report, ident),
        "parity": parity(report),
        "provenance": list(_provenance(report)),
    }  # fmt: skip


def facts(report: CheckReport) -> list[str]:
    """The line below the name."""
    runtime = "no runtime" if report.runtime is None else report.runtime.version
    return [f"made from {base(report.model)}", runtime]


def tiles(report: CheckReport) -> list[Tile]:
    file, distance = report.file, figures.gated(report)
    kl, same, perplexity = (
        figures.kl_mean(distance), figures.top1(distance), figures.perplexity_ratio(distance),
    )  # fmt: skip
    parts = f" in {count(file.files, 'file')}" if file.files > 1 else ""
    found = [
        Tile("Size", megabytes(file.nbytes), f"{file.bits_per_weight:.2f} bits per weight{parts}"),
        Tile("Mean KL, nats", number(kl.value), span(kl)),
        Tile("Same first token", percent(same.value), span(same, percent)),
        Tile("Perplexity ratio", ratio(perplexity.value), span(perplexity, ratio)),
    ]
    if report.speed is not None:
        shown = {row.kind: row for row in reversed(speed.timed(report.speed))}
        row = shown["generation"]
        under = span(row.found, row.shown)
        if row.gain is not None:
            under = f"{times(row.gain.value)} the unquantized"
        found.append(Tile("Generation, tokens/s", row.shown(row.found.value), under))
    return found


def _distance(row: distances.Row) -> dict[str, Any]:
    one = row.distance
    kl, same, perplexity = (
        figures.kl_mean(one), figures.top1(one), figures.perplexity_ratio(one),
    )  # fmt: skip
    return {
        "label": row.label,
        "path": row.path,
        "colour": row.colour,
        "positions": one.positions,
        "broken": one.broken,
        "kl": (number(kl.value), span(kl)),
        "tail": [(number(found.value), span(found)) for _, found in figures.kl_tail(one)],
        "top1": (percent(same.value), span(same, percent)),
        "perplexity": (ratio(perplexity.value), span(perplexity, ratio)),
    }


def _token(one: WorstToken) -> dict[str, Any]:
    before = one.before if len(one.before) <= CONTEXT else f"…{one.before[-CONTEXT:]}"
    return {
        "before": before.replace("\n", "↵"),
        "token": visible(one.token),
        "source": visible(one.source),
        "output": visible(one.output),
        "kl": number(one.kl),
        "where": f"window {one.window}, position {one.position}",
        "same": one.source == one.output,
    }


def visible(token: str) -> str:
    """Spaces at the ends and what does not print, seen."""
    shown = "".join(
        one if one.isprintable() else {"\n": "↵", "\t": "⇥"}.get(one, "�") for one in token
    )
    left, right = len(shown) - len(shown.lstrip(" ")), len(shown) - len(shown.rstrip(" "))
    if left == len(shown):
        return "␣" * left or "∅"
    return "␣" * left + shown.strip(" ") + "␣" * right


def _speed(report: CheckReport, ident: str) -> dict[str, Any] | None:
    found = report.speed
    if found is None:
        return None
    rows, plain = speed.timed(found), found.beside
    return {
        "picture": speed.rates(f"{ident}-rates", rows),
        "rows": [
            {
                "row": row,
                "value": row.shown(row.found.value),
                "span": span(row.found, row.shown),
                "plain": row.plain and row.shown(row.plain.value),
                "gain_span": "" if row.gain is None else span(row.gain, times),
                "gain": "" if row.gain is None else times(row.gain.value),
            }
            for row in rows
        ],
        "plain": plain is not None,
        "memory": megabytes(found.peak_bytes),
        "plain_memory": plain and megabytes(plain.peak_bytes),
        "load": duration(found.load_seconds),
        "plain_load": plain and duration(plain.load_seconds),
        "terms": f"{found.runtime.version}, {count(found.throughput.threads, 'thread')},"
        f" {found.processor}; median of {count(found.throughput.repetitions, 'repetition')} after a"
        f" warm-up, the line on a bar is its interval",
        "notes": found.notes,
    }


def parity(report: CheckReport) -> list[dict[str, Any]]:
    """What must be equal: tokens, and what loaders made of the file."""
    found = []
    if report.tokens is not None:
        same = report.tokens.strings - report.tokens.mismatches
        found.append(
            {
                "good": report.tokens.mismatches == 0,
                "label": "Tokenizer",
                "told": f"{same:,} of {count(report.tokens.strings, 'string')} get the same tokens",
                "problems": (),
            }
        )
    for one in report.loaders:
        found.append(
            {
                "good": not one.problems,
                "label": one.label if not one.problems else (one.version or one.name),
                "told": loaded(one),
                "problems": one.problems,
            }
        )
    return found


def loaded(one: LoaderFacts) -> str:
    """ "53 tensors, 0 left; 14 FP8Linear, 1 FP16Linear" """
    kinds = ", ".join(f"{n} {kind}" for kind, n in one.layers.items())
    taken = "" if one.tensors is None else f"{count(one.tensors, 'tensor')}, {one.skipped} left"
    return "; ".join(part for part in (taken, kinds) if part)


def _provenance(report: CheckReport) -> Iterator[tuple[str, Markup | str]]:
    text, file = report.text, report.file
    yield "output", file.path
    yield "source model", report.model
    named = [f"{n} {TIMES} {kind}" for kind, n in file.types.items()]
    more = [f"{len(named) - TYPES} more types"] if len(named) > TYPES else []
    yield "stored tensors", ", ".join([*named[:TYPES], *more]) or UNKNOWN
    front = f", {count(len(text.prefix), 'token')} put in front of each" if text.prefix else ""
    yield (
        "text",
        f"{text.name}: {count(text.windows, 'window')} of {text.length} tokens{front},"
        f" {report.quantization.positions:,} positions",
    )
    yield "sha256 of the text", text.sha256
    yield "reference", "transformers, float32"
    if report.runtime is not None:
        threads = count(report.runtime.threads, "thread")
        yield "runtime", f"{report.runtime.name}: {report.runtime.version}, {threads}"
    for one in report.loaders:
        if one.version:
            yield "loader", one.version
    yield "took", duration(report.seconds)
