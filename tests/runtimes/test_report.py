from __future__ import annotations

import io
from dataclasses import dataclass, replace
from math import inf, nan

from rich.console import Console, RenderableType

from qconvert.runtimes.findings import (
    BenchReport,
    CheckReport,
    FileFacts,
    Finding,
    Interval,
    Judgement,
    LayerError,
    Noise,
    RuntimeFacts,
    Speedup,
    TextFacts,
    TokenParity,
    Verdict,
)
from qconvert.runtimes.measure import Distance
from qconvert.runtimes.report import bench_view, check_view, checks_view, verified_view
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
    seconds=51.0,
)
BENCH = BenchReport(
    FILE, RUNTIME, Throughput(662.0, 151.25, 512, 64, 2, 512, 5, (650, 670), (150, 152), 0.99),
    0.31, 211_000_000, "Some Processor", 0.01, ("another note",),
)  # fmt: skip


@dataclass(frozen=True)
class Again:
    """A manifest's answer."""

    verdict: Verdict
    told: str
    findings: tuple[Finding, ...] = ()


def shown(view: RenderableType, width: int = 200) -> str:
    out = io.StringIO()
    Console(file=out, width=width, markup=False, highlight=False).print(view)
    return out.getvalue()


def test_a_check_shows_both_distances_and_the_floor() -> None:
    text = shown(check_view(CHECK))
    expected = ("PASS", "a[red]b.gguf", "143.6 MB", "5.08", "0.2000", "0.0040", "1.0e-04", "0.0037",
                "x 1.1974", "81.0%", "8 windows of 512", "3911 of 3911",
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


def test_gates_findings_and_blocks_are_shown() -> None:
    failed = replace(
        CHECK,
        verdict="FAIL",
        reasons=("rope_theta is 10000", "the tokenizer splits it", "it is 1.21; more than 1.03"),
        findings=(
            Finding("settings", "rope_theta", "rope_theta is 10000"),
            Finding("tokens", "tokenizer[b]", "the tokenizer splits it"),
        ),
        judgements=(
            Judgement("max-ppl-ratio", 1.03, Interval(1.21, 1.1, 1.42), "FAIL", "it is 1.21"),
            Judgement("min-top1", 0.9, Interval(nan, nan, nan), "INCONCLUSIVE", "not known"),
            Judgement("max-kl-p999", 1.0, Interval(0.5, 0.4, inf), "INCONCLUSIVE", "no end"),
        ),
        layers=(LayerError(0, 0.01, 0.002, 0.001), LayerError(1, 0.031, 0.007, 0.005)),
    )
    text = shown(check_view(failed))
    for piece in ("FAIL", "- rope_theta is 10000", "tokenizer[b]: the tokenizer splits it",
                  "at most 1.03", "1.1 to 1.42", "INCONCLUSIVE", "at least 90.00 %",
                  "0.4 nats or more", "- it is 1.21; more than 1.03",
                  "3.1% off after the last", "0.7% (block 1, 0.5% expected)"):  # fmt: skip
        assert piece in text
    assert text.count("rope_theta is 10000") == 1


def test_many_findings_are_cut() -> None:
    many = tuple(Finding("bytes", f"tensor {n}", f"tensor {n} is off") for n in range(11))
    reasons = tuple(one.problem for one in many)
    text = shown(check_view(replace(CHECK, verdict="FAIL", findings=many, reasons=reasons)))
    assert "tensor 7 is off" in text
    assert "tensor 8 is off" not in text
    assert "and 3 more" in text


def test_several_are_compared() -> None:
    large = replace(CHECK, file=replace(FILE, path="large.gguf", nbytes=200_000_000),
                    total=distance(0.5, 60.0), verdict="FAIL", reasons=("too far",))  # fmt: skip
    small = replace(CHECK, file=replace(FILE, path="small.gguf", nbytes=90_000_000),
                    total=distance(0.4, 50.0), verdict="INCONCLUSIVE")  # fmt: skip
    text = shown(checks_view([CHECK, large, small]))
    rows = [line.split() for line in text.splitlines() if ".gguf" in line and ":" not in line]
    assert [row[0] for row in rows] == ["*", "large.gguf", "*"]
    assert [row[row.index("large.gguf") + 1] for row in rows[1:2]] == ["FAIL"]
    assert "- too far" in text
    assert rows[2][3] == "90.0"


def test_nothing_is_wider_than_the_terminal() -> None:
    speed = replace(BENCH, beside=BENCH, batches=(BENCH.throughput,))
    for view in (check_view(replace(CHECK, speed=speed)), checks_view([CHECK, CHECK])):
        assert max(map(len, shown(view, 100).splitlines())) <= 100


def test_a_bench_beside_the_unquantized_model() -> None:
    gain = Speedup(512, 1, Interval(1.1, 1.05, 1.15), Interval(1.93, 1.9, 1.97))
    text = shown(bench_view(replace(BENCH, beside=BENCH, speedups=(gain,))))
    for piece in ("1.93 times (1.90 to 1.97)", "1.10 times (1.05 to 1.15)", "unquantized: 0.31 s"):
        assert piece in text


def test_a_manifest_that_holds_and_one_that_does_not() -> None:
    changed = (Finding("file", "a.gguf", "a.gguf has other bytes"),)
    text = shown(verified_view(Again("FAIL", "files have changed since", changed)))
    assert text.split("\n")[:2] == ["FAIL  files have changed since", "  - a.gguf has other bytes"]
    assert shown(verified_view(Again("PASS", "as they were"))).strip() == "PASS  as they were"
