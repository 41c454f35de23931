from __future__ import annotations

import pytest

from qconvert.runtimes.findings import CheckReport, FileFacts, Interval, RuntimeFacts, TextFacts
from qconvert.runtimes.measure import Distance, Intervals


def near(value: float) -> Interval:
    return Interval(value, 0.9 * value, 1.1 * value)


DISTANCE = Distance(
    4088, 0.044, 0.027, 0.3, 0.9, 1.8, 21.2, 22.0, 1.04, 0.88, 0,
    Intervals(near(0.044), near(0.027), near(0.3), near(0.9), near(0.88), near(1.04)),
)  # fmt: skip


@pytest.fixture
def report() -> CheckReport:
    """A check that found nothing wrong."""
    return CheckReport(
        verdict="PASS",
        reasons=(),
        notes=("a note",),
        file=FileFacts("/somewhere/a.b.gguf", 1, 143_565_312, 5.08, {"Q4_K": 120}),
        model="/elsewhere/wide",
        runtime=RuntimeFacts("llamacpp", "llama.cpp 0.5.0", 2),
        text=TextFacts("wikitext", "0" * 64, 8, 512, ()),
        quantization=DISTANCE,
        runtime_adds=None,
        total=None,
        floor=None,
        noise=None,
        tokens=None,
        tensors=(),
        seconds=51.25,
    )
