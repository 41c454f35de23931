"""Small made-up reports, for the tests of the page and of the console."""

from __future__ import annotations

from dataclasses import replace

from qconvert.runtimes.diagnosis.tensor_error import TensorError
from qconvert.runtimes.findings import (
    BenchReport,
    CheckReport,
    FileFacts,
    Finding,
    Histogram,
    Interval,
    Judgement,
    LayerError,
    LoaderFacts,
    Noise,
    RuntimeFacts,
    Speedup,
    TextFacts,
    TokenMismatch,
    TokenParity,
    WorstToken,
)
from qconvert.runtimes.measure import Distance, Intervals
from qconvert.runtimes.runtime import Throughput

HOSTILE = "</script><img src=x onerror=alert(1)>'\"&{{7*7}}\u202e\x07"
"""Markup, an attribute's end, a template, a character that turns the writing round, a bell."""


def distance(kl: float) -> Distance:
    found = Intervals(
        *(Interval(value, 0.8 * value, 1.3 * value) for value in (kl, kl / 2, 9 * kl)),
        Interval(30 * kl, 12 * kl, float("inf")),
        Interval(0.9, 0.88, 0.92),
        Interval(1 + kl, 1 + kl / 2, 1 + 2 * kl),
    )
    return Distance(4088, kl, kl / 2, 9 * kl, 30 * kl, 40 * kl, 29.2, 29.2 * (1 + kl), 1 + kl, 0.9,
                    0, found)  # fmt: skip


FILE = FileFacts("models/small-Q4_K_M.gguf", 1, 105_454_016, 5.01, {"Q4_K": 120, "F32": 61})
RUNTIME = RuntimeFacts("llamacpp", "llama.cpp 0.5.0", 2)
RATES = Throughput(662.0, 151.25, 512, 64, 2, 512, 7, (650, 670), (150, 152), 0.99, 1, 0.77,
                   (0.76, 0.79))  # fmt: skip
MANY = replace(RATES, sequences=8, prompt_tokens_per_s=700.5, generate_tokens_per_s=604.0,
               first_token_s=6.1, first_token_spread=(6.0, 6.2))  # fmt: skip
PLAIN = replace(RATES, generate_tokens_per_s=78.5, generate_spread=(76, 80))
SPEED = BenchReport(
    FILE, RUNTIME, RATES, 0.31, 211_000_000, "Some Processor", 0.01, ("a note on speed",),
    (RATES, MANY), BenchReport(FILE, RUNTIME, PLAIN, 1.2, 410_000_000, "Some Processor", 0.0, ()),
    (Speedup(512, 1, Interval(1.1, 1.05, 1.2), Interval(1.93, 1.9, 1.97)),),
)  # fmt: skip
JUDGEMENTS = (
    Judgement("max-kl", 0.3, Interval(0.21, 0.19, 0.24), "PASS", "kl is told"),
    Judgement("min-top1", 0.85, Interval(0.9, 0.88, 0.92), "PASS", "top-1 is told"),
    Judgement("max-size", 2e8, Interval(1.05e8, 1.05e8, 1.05e8), "PASS", "size is told"),
)
MISSED = Judgement("max-ppl-ratio", 1.03, Interval(1.21, 1.1, 1.42), "FAIL", "it is 1.21")
OPEN = Judgement("max-kl", 0.21, Interval(0.2, 0.17, 0.24), "INCONCLUSIVE",
                 "about 34,000 tokens would decide")  # fmt: skip
LAYERS = tuple(LayerError(n, 0.01 * (n + 1), 0.004 * (n + 2), 0.004 * (n + 1)) for n in range(12))
WORST = (
    WorstToken(3, 77, "the lobster\n has a hard exo", "skeleton", 8.69, "skeleton", " shell"),
    WorstToken(0, 5, "weighs", " ", 1.8, " ", "9"),
)
TENSORS = tuple(
    TensorError(f"model.layers.{n}.mlp.up_proj.weight", 0.04, 0.1 + n / 100, n, 0.75)
    for n in range(12)
)
CHECK = CheckReport(
    verdict="PASS", reasons=(), notes=("a note",), file=FILE, model="models/small",
    runtime=RUNTIME, text=TextFacts("wikitext", "0" * 64, 8, 512, (1,)),
    quantization=distance(0.2), runtime_adds=distance(0.004), total=distance(0.21),
    floor=distance(1e-4),
    noise=Noise(2, distance(0.004), distance(0.005), distance(0.0037), distance(1e-4), 0.0153),
    tokens=TokenParity(3911, 0, ()), tensors=TENSORS, seconds=51.0,
    loaders=(LoaderFacts("one", "its loader takes it", "one 1.2", 53, 0, {"Linear": 14}, ()),),
    judgements=JUDGEMENTS, layers=LAYERS, worst=WORST,
    histogram=Histogram((1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0), (3, 80, 1500, 2000, 500, 5)),
    speed=SPEED,
)  # fmt: skip
FAILED = replace(
    CHECK,
    verdict="FAIL",
    file=replace(FILE, path="models/swapped.gguf", nbytes=98_000_000),
    reasons=("rope_theta is 10000", "row 3 is off by 140%", "a reason of no finding"),
    findings=(
        Finding("settings", "rope_theta", "rope_theta is 10000"),
        Finding("bytes", "model.layers.7.mlp.up_proj.weight", "row 3 is off by 140%"),
    ),
    judgements=(MISSED, *JUDGEMENTS[1:]),
    tensors=(*TENSORS, TensorError("model.layers.7.mlp.gate_proj.weight", 1.2, 1.4, 3, 0.75)),
    tokens=TokenParity(3911, 1, (TokenMismatch("  x", (256, 92), (220, 220, 92)),)),
    loaders=(LoaderFacts("one", "its loader takes it", "one 1.2", 50, 3, {}, ("3 are left",)),),
)
UNDECIDED = replace(
    CHECK,
    verdict="INCONCLUSIVE",
    file=replace(FILE, path="models/small-Q5_K_M.gguf", nbytes=121_000_000),
    judgements=(OPEN,),
    total=distance(0.2),
)
ALONE = replace(
    CHECK, runtime=None, runtime_adds=None, total=None, floor=None, noise=None, tokens=None,
    loaders=(), judgements=(), layers=(), worst=(), histogram=None, speed=None, tensors=(),
    notes=("no runtime was run",),
)  # fmt: skip
"""Only what is never None."""


def hostile() -> CheckReport:
    """Strings that are not ours in every place that has one, each of them markup."""
    rows = tuple(replace(one, name=f"{HOSTILE}{n}") for n, one in enumerate(TENSORS))
    return replace(
        FAILED,
        file=replace(FILE, path=f"a/{HOSTILE}", types={HOSTILE: 1}),
        model=HOSTILE,
        notes=(HOSTILE,),
        reasons=(HOSTILE,),
        runtime=replace(RUNTIME, name=HOSTILE, version=HOSTILE),
        text=replace(CHECK.text, name=HOSTILE, sha256=HOSTILE),
        findings=(Finding("bytes", HOSTILE, HOSTILE),),
        judgements=(replace(OPEN, gate=HOSTILE, told=HOSTILE),),
        tensors=rows,
        tokens=TokenParity(3, 1, (TokenMismatch(HOSTILE, (1,), (2,)),)),
        worst=(WorstToken(0, 0, HOSTILE, HOSTILE, 1.0, HOSTILE, HOSTILE),),
        loaders=(LoaderFacts(HOSTILE, HOSTILE, HOSTILE, 1, 0, {HOSTILE: 1}, (HOSTILE,)),),
        speed=replace(SPEED, processor=HOSTILE, notes=(HOSTILE,)),
    )
