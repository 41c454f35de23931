from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console, RenderableType

from qconvert.runtimes.findings import (
    BenchReport,
    CheckReport,
    FileFacts,
    Noise,
    RuntimeFacts,
    TextFacts,
    TokenParity,
)
from qconvert.runtimes.measure import Distance
from qconvert.runtimes.report import bench_view, check_view
from qconvert.runtimes.runtime import Throughput
from qconvert.runtimes.weights import TensorError


def distance(kl: float, perplexity: float) -> Distance:
    return Distance(
        4088, kl, kl / 2, kl * 9, kl * 20, kl * 40, 29.23, perplexity, perplexity / 29.23, 0.81, 0,
    )  # fmt: skip


FILE = FileFacts("/x/a[red]b.gguf", 1, 143_565_312, 5.08, {"Q4_K": 120, "F32": 61})
RUNTIME = RuntimeFacts("llamacpp", "llama.cpp 0.5.0", 2)
CHECK = CheckReport(
    verdict="PASS",
    reasons=(),
    notes=("a note",),
    file=FILE,
    model="models/wide",
    runtime=RUNTIME,
    text=TextFacts("wikitext", "0" * 64, 8, 512, ()),
    quantization=distance(0.2, 35.0),
    runtime_adds=distance(0.004, 35.1),
    total=distance(0.21, 36.0),
    floor=distance(1e-4, 29.24),
    noise=Noise(
        2,
        distance(0.004, 35.1),
        distance(0.005, 35.2),
        distance(0.0037, 35.3),
        distance(1e-4, 29.24),
        0.0153,
    ),
    tokens=TokenParity(3911, 0, ()),
    tensors=(TensorError("blk", 0.08, 0.18, 3, 0.4),),
    max_kl=None,
    seconds=51.0,
)
BENCH = BenchReport(
    FILE, RUNTIME, Throughput(662.0, 151.25, 512, 64, 2, 512, 5, (650, 670), (150, 152), 0.99),
    0.31, 211_000_000, "Some Processor", 0.01, ("another note",),
)  # fmt: skip


def shown(view: RenderableType) -> str:
    out = io.StringIO()
    Console(file=out, width=200, markup=False, highlight=False).print(view)
    return out.getvalue()


def test_a_check_shows_both_distances_and_the_floor() -> None:
    text = shown(check_view(CHECK))
    expected = ("PASS", "a[red]b.gguf", "143.6 MB", "5.08", "0.2000", "0.0040", "1.0e-04", "0.0037",
                "29.23 -> 35.00", "81.0%", "8 windows of 512", "3911 of 3911",
                "a note")  # fmt: skip
    for piece in expected:
        assert piece in text


def test_a_failed_check_says_why_without_a_runtime() -> None:
    failed = replace(
        CHECK, verdict="FAIL", reasons=("blk.0 is wrong",), runtime_adds=None, total=None,
        floor=None, noise=None, tokens=None, tensors=(),
    )  # fmt: skip
    text = shown(check_view(failed))
    assert "FAIL" in text
    assert "blk.0 is wrong" in text


def test_a_bench_shows_rates_and_their_terms() -> None:
    text = shown(bench_view(BENCH))
    for piece in ("662.0", "151.2", "512", "2 threads", "211.0 MB", "0.31 s", "another note"):
        assert piece in text


def test_a_bench_shows_each_batch() -> None:
    many = replace(BENCH.throughput, sequences=16, generate_tokens_per_s=1203.5)
    text = shown(bench_view(replace(BENCH, batches=(BENCH.throughput, many))))
    for piece in ("151.2", "generation, 16 at once", "1,203.5"):
        assert piece in text
