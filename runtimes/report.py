"""What people see of a check and a bench: rich tables. The facts are in `findings`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from qconvert.runtimes.findings import BenchReport, CheckReport, FileFacts, LoaderFacts, Noise
from qconvert.runtimes.measure import Distance


def check_view(report: CheckReport) -> RenderableType:
    """The verdict with its reasons, the distances, and what they were measured on."""
    distances = _table("", "distance", "KL (nats)", "median", "p99", "perplexity", "top-1")
    for name, distance in _distances(report):
        _add(distances, name, *_distance_cells(distance))
    about = Text("\n".join(_about_check(report)), style="dim")
    return Group(_verdict(report), distances, about)


def bench_view(report: BenchReport) -> RenderableType:
    """Rates, memory and load time, and what they depend on."""
    rates = report.throughput
    table = _table("", "", "tokens/s", "slowest", "fastest", "tokens")
    for one in report.batches or (rates,):
        at_once = f", {one.sequences} at once" if one.sequences > 1 else ""
        for name, rate, spread, tokens in (
            ("prompt", one.prompt_tokens_per_s, one.prompt_spread, one.prompt_tokens),
            ("generation", one.generate_tokens_per_s, one.generate_spread, one.generate_tokens),
        ):
            cells = (f"{rate:,.1f}", f"{spread[0]:,.1f}", f"{spread[1]:,.1f}", tokens)
            _add(table, f"{name}{at_once}", *cells)
    about = [
        _file_line(report.file),
        f"{report.runtime.version}, {_threads(rates.threads)}, steps of at most {rates.batch}"
        f" tokens, median of {rates.repetitions} after a warm-up",
        f"loaded in {report.load_seconds:.2f} s, peak memory {_size(report.peak_bytes)},"
        f" {report.processor}",
        *(f"note: {note}" for note in report.notes),
    ]
    return Group(table, Text("\n".join(about), style="dim"))


def _verdict(report: CheckReport) -> Text:
    style = "bold green" if report.passed else "bold red"
    line = Text(report.verdict, style=style)
    if report.runtime is None:
        line.append("  of the file alone, no runtime was run:", style="not bold default")
    line.append(f"  {_file_line(report.file)}", style="not bold default")
    for reason in report.reasons:
        line.append(f"\n  - {reason}", style="not bold default")
    for loader in report.loaders:
        if not loader.problems:
            line.append(f"\n  + {loader.label}{_taken(loader)}", style="not bold default")
    return line


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
        _small(distance.kl_mean) + _between(distance),
        _small(distance.kl_median),
        _small(distance.kl_p99),
        f"{distance.perplexity_p:.2f} -> {distance.perplexity_q:.2f}",
        f"{distance.top1:.1%}",
    )


def _between(distance: Distance) -> str:
    """ " (0.0412 to 0.0467)", the interval of the mean; empty where it was not asked for."""
    if distance.intervals is None:
        return ""
    mean = distance.intervals.kl_mean
    return f" ({_small(mean.low)} to {_small(mean.high)})"


def _about_check(report: CheckReport) -> Iterator[str]:
    text, tokens = report.text, report.tokens
    yield (
        f"{text.windows} windows of {text.length} tokens of {text.name},"
        f" {report.quantization.positions} positions; reference: transformers, float32"
    )
    if report.runtime is None:
        yield f"no runtime, {report.seconds:.0f} s"
    else:
        threads = _threads(report.runtime.threads)
        yield f"{report.runtime.version}, {threads}, {report.seconds:.0f} s"
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
    if report.noise is not None:
        yield f"the runtime {_allowed(report.noise)}"
    if report.also is not None and report.also.noise is not None:
        yield f"{report.also.label}: it {_allowed(report.also.noise)}"
    yield from (f"note: {note}" for note in report.notes)


def _allowed(noise: Noise) -> str:
    return (
        f"may add {_small(noise.limit)} nats; it adds {_small(noise.adds.kl_mean)} over the first"
        f" {noise.windows} windows"
    )


def _file_line(file: FileFacts) -> str:
    parts = f" in {file.files} files" if file.files > 1 else ""
    return (
        f"{Path(file.path).name}: {_size(file.nbytes)}{parts},"
        f" {file.bits_per_weight:.2f} bits per weight"
    )


def _small(value: float) -> str:
    return f"{value:.4f}" if value >= 1e-3 else f"{value:.1e}"


def _size(nbytes: float) -> str:
    return f"{nbytes / 1e6:,.1f} MB" if nbytes < 1e9 else f"{nbytes / 1e9:,.2f} GB"


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    return table


def _add(table: Table, *cells: object) -> None:
    """A row of plain text: file names may hold the marks that rich would interpret."""
    table.add_row(*(Text(str(cell)) for cell in cells))
