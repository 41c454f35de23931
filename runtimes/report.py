"""What people see of a check and a bench: rich tables. The facts are in `findings`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from rich.console import Group, RenderableType
from rich.text import Text

from qconvert.runtimes.findings import (
    BenchReport,
    CheckReport,
    FileFacts,
    Finding,
    LayerError,
    LoaderFacts,
    Noise,
    Verdict,
)
from qconvert.runtimes.measure import Distance
from qconvert.runtimes.page import figures
from qconvert.runtimes.page.tradeoff import front, points
from qconvert.runtimes.report_tables import (
    STYLES,
    add,
    between,
    gates_table,
    new_table,
    rates_table,
    size,
    small,
    threads,
)

SHOWN = 8  # findings


class Verified(Protocol):
    """Files beside the manifest that was written of them."""

    @property
    def verdict(self) -> Verdict: ...
    @property
    def told(self) -> str: ...
    @property
    def findings(self) -> Sequence[Finding]: ...


def check_view(report: CheckReport) -> RenderableType:
    """The verdict with its reasons, gates, the distances, and what they were measured on."""
    distances = new_table("distance", "mean KL", "95 %", "p99", "p99.9", "top-1", "perplexity")
    for name, distance in _distances(report):
        add(distances, name, *_distance_cells(distance))
    about = Text("\n".join(_about_check(report)), style="dim")
    gates = [gates_table(report.judgements)] if report.judgements else []
    speed = [] if report.speed is None else [rates_table(report.speed)]
    return Group(_verdict(report), *gates, distances, *speed, about)


def checks_view(reports: Sequence[CheckReport]) -> RenderableType:
    """Each verdict with its reasons, then size against accuracy; * is beaten by no other in
    both."""
    table = new_table("", "output", "verdict", "MB", "mean KL", "95 %", "top-1", "tokens/s")
    best = {point.number for point in front(points(reports))}
    for at, one in enumerate(reports, 1):
        distance = figures.gated(one)
        rate = "" if one.speed is None else f"{one.speed.throughput.generate_tokens_per_s:,.1f}"
        add(
            table, "*" if at in best else "", Path(one.file.path).name,
            Text(one.verdict, style=STYLES[one.verdict]), f"{one.file.nbytes / 1e6:,.1f}",
            small(distance.kl_mean),
            between(figures.kl_mean(distance)), f"{distance.top1:.1%}", rate,
        )  # fmt: skip
    told = Text("* no other output is both smaller and nearer to the source", style="dim")
    return Group(*(_verdict(one) for one in reports), table, told)


def verified_view(found: Verified) -> RenderableType:
    """Whether files are those of a manifest, and what was said of them."""
    line = Text(found.verdict, style=STYLES[found.verdict])
    line.append(f"  {found.told}", style="not bold default")
    _append_findings(line, found.findings)
    return line


def bench_view(report: BenchReport) -> RenderableType:
    """Rates, memory and load time, and what they depend on."""
    rates = report.throughput
    beside = report.beside
    plain = (
        f"; unquantized: {beside.load_seconds:.2f} s, {size(beside.peak_bytes)}" if beside else ""
    )
    about = [
        _file_line(report.file),
        f"{report.runtime.version}, {threads(rates.threads)}, steps of at most {rates.batch}"
        f" tokens",
        f"prompts of {rates.prompt_tokens} tokens; {rates.generate_tokens} generated, from an empty"
        f" context; median of {rates.repetitions} after a warm-up",
        f"loaded in {report.load_seconds:.2f} s, peak memory {size(report.peak_bytes)},"
        f" {report.processor}{plain}",
        *(f"note: {note}" for note in report.notes),
    ]
    return Group(rates_table(report), Text("\n".join(about), style="dim"))


def _verdict(report: CheckReport) -> Text:
    line = Text(report.verdict, style=STYLES[report.verdict])
    if report.runtime is None:
        line.append("  of the file alone, no runtime was run:", style="not bold default")
    line.append(f"  {_file_line(report.file)}", style="not bold default")
    _append_findings(line, report.findings)
    told = {one.problem for one in report.findings}
    for reason in report.reasons:
        if reason not in told:
            line.append(f"\n  - {reason}", style="not bold default")
    for judgement in report.judgements:
        if judgement.verdict == "INCONCLUSIVE":
            line.append(f"\n  ? {judgement.told}", style="not bold default")
    for loader in report.loaders:
        if not loader.problems:
            line.append(f"\n  + {loader.label}{_taken(loader)}", style="not bold default")
    return line


def _append_findings(line: Text, findings: Sequence[Finding]) -> None:
    """The culprit in bold, and what is wrong with it."""
    for one in findings[:SHOWN]:
        line.append("\n  - ", style="not bold default")
        if not one.problem.startswith(one.culprit):
            line.append(f"{one.culprit}: ", style="bold default")
        line.append(one.problem, style="not bold default")
    if len(findings) > SHOWN:
        line.append(f"\n  - and {len(findings) - SHOWN} more", style="not bold default")


def _taken(loader: LoaderFacts) -> str:
    """ ": 53 tensors, 0 left; 14 FP8Linear, 1 FP16Linear" """
    layers = ", ".join(f"{count} {kind}" for kind, count in loader.layers.items())
    tensors = "" if loader.tensors is None else f"{loader.tensors} tensors, {loader.skipped} left"
    told = "; ".join(part for part in (tensors, layers) if part)
    return f": {told}" if told else ""


def _distances(report: CheckReport) -> Iterator[tuple[str, Distance]]:
    name = "" if report.runtime is None else report.runtime.name
    yield "source -> file as decoded (what quantization costs)", report.quantization
    if report.as_told is not None:
        told = "source -> file with activations rounded as it says (what users should get)"
        yield told, report.as_told
    if report.runtime_adds is not None:
        yield f"file as decoded -> {name} (what the runtime adds)", report.runtime_adds
    if report.noise is not None:
        yield "  expected of it: its rounding of activations", report.noise.expected
        yield f"  beyond: rounded reference -> {name}", report.noise.beyond
    if report.floor is not None:
        yield f"  noise floor: source -> {name}, unquantized file", report.floor
    also = report.also
    if report.total is not None:
        what = "" if also is not None else " (what a user gets)"
        yield f"source -> {name}{what}", report.total
    if also is not None and also.adds is not None:
        yield f"file as decoded -> {name}, {also.label}", also.adds
    if also is not None and also.noise is not None:
        yield "  expected of it: its rounding of activations", also.noise.expected
        yield f"  beyond: rounded reference -> {name}", also.noise.beyond
    if also is not None and also.total is not None:
        yield f"source -> {name}, {also.label} (what a user gets)", also.total


def _distance_cells(distance: Distance) -> tuple[str, ...]:
    return (
        small(distance.kl_mean),
        between(figures.kl_mean(distance)),
        small(distance.kl_p99),
        small(distance.kl_p999),
        f"{distance.top1:.1%}",
        f"x {distance.perplexity_ratio:.4f}",
    )


def _about_check(report: CheckReport) -> Iterator[str]:
    text, tokens = report.text, report.tokens
    yield (
        f"{text.windows} windows of {text.length} tokens of {text.name},"
        f" {report.quantization.positions} positions; reference: transformers, float32"
    )
    if report.runtime is None:
        yield f"no runtime, {report.seconds:.0f} s"
    else:
        told = threads(report.runtime.threads)
        yield f"{report.runtime.version}, {told}, {report.seconds:.0f} s"
    if tokens is not None:
        same = tokens.strings - tokens.mismatches
        yield f"tokenizer: {same} of {tokens.strings} strings get the same tokens"
    worst = max(report.tensors, key=lambda one: one.worst_row / one.limit, default=None)
    if worst is not None:
        near = sum(one.ok for one in report.tensors)
        yield (
            f"tensors: {near} of {len(report.tensors)} as near to the source as their bits allow;"
            f" furthest row: {worst.worst_row:.1%} in {worst.name}"
        )
    beside = [f"by a second reader ({report.decoded_twice} tensors)"] * bool(report.decoded_twice)
    beside += ["with the work folder"] * report.kept
    if beside:
        yield f"compared {' and '.join(beside)}"
    if report.layers:
        yield _blocks(report.layers)
    if report.noise is not None:
        yield f"the runtime {_allowed(report.noise)}"
    if report.also is not None and report.also.noise is not None:
        yield f"{report.also.label}: it {_allowed(report.also.noise)}"
    yield from (f"note: {note}" for note in report.notes)


def _blocks(layers: Sequence[LayerError]) -> str:
    """Of hidden states: how far they are off where the blocks end."""
    told = f"blocks: {layers[-1].quantization:.1%} off after the last, by quantization"
    worst = max(layers, key=lambda one: one.runtime or 0.0)
    if worst.runtime:
        told += f"; the runtime adds up to {worst.runtime:.1%} (block {worst.block}"
        told += "" if worst.expected is None else f", {worst.expected:.1%} expected"
        told += ")"
    return told


def _allowed(noise: Noise) -> str:
    return (
        f"may add {small(noise.limit)} nats; it adds {small(noise.adds.kl_mean)} over the first"
        f" {noise.windows} windows"
    )


def _file_line(file: FileFacts) -> str:
    parts = f" in {file.files} files" if file.files > 1 else ""
    return (
        f"{Path(file.path).name}: {size(file.nbytes)}{parts},"
        f" {file.bits_per_weight:.2f} bits per weight"
    )
