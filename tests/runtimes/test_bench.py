from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from qconvert.formats.gguf.target import TARGET
from qconvert.formats.refusal import Refused
from qconvert.runtimes import machine
from qconvert.runtimes.bench import bench, doubts
from qconvert.runtimes.llamacpp import LlamaCpp
from qconvert.runtimes.runtime import Throughput

STEADY = Throughput(100.0, 10.0, 64, 8, 2, 64, 5, (98.0, 103.0), (9.8, 10.1), 0.98)


def test_a_bench_says_what_it_depends_on(runtime: LlamaCpp, tiny_gguf: Callable[..., Path]) -> None:
    out = tiny_gguf("Q8_0")
    found = bench(
        out, runtime, reader=TARGET.reader(out), prompt=64, generate=8, repetitions=2, threads=1
    )
    assert found.throughput.prompt_tokens_per_s > 0
    assert found.throughput.generate_tokens_per_s > 0
    assert found.load_seconds > 0
    assert found.peak_bytes > out.stat().st_size
    assert found.runtime.threads == 1
    assert found.file.nbytes == out.stat().st_size
    assert 8 < found.file.bits_per_weight < 10
    assert found.batches == (found.throughput,)
    json.dumps(asdict(found))


def test_llamacpp_is_measured_alone(runtime: LlamaCpp, tiny_gguf: Callable[..., Path]) -> None:
    out = tiny_gguf("Q8_0")
    with pytest.raises(Refused, match="one sequence"):
        bench(out, runtime, reader=TARGET.reader(out), prompt=8, generate=2, batches=(16,))


@pytest.mark.parametrize(
    ("rates", "busy", "word"),
    [
        (STEADY, 0.6, "60% of the cores"),
        (replace(STEADY, cpu_share=0.5), 0.0, "50% of its 2 threads"),
        (replace(STEADY, prompt_spread=(50.0, 110.0)), 0.0, "prompt rate varied"),
        (replace(STEADY, generate_spread=(5.0, 11.0)), 0.0, "generation rate varied"),
    ],
)
def test_doubtful_rates_are_called_so(rates: Throughput, busy: float, word: str) -> None:
    assert doubts(STEADY, 0.0) == []
    found = doubts(rates, busy)
    assert len(found) == 1
    assert word in found[0]


def test_cores_stay_within_a_quota(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("150000 100000\n", encoding="ascii")
    assert machine._cgroup_cores(tmp_path / "cpu.max") == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n", encoding="ascii")
    assert machine._cgroup_cores(tmp_path / "cpu.max") is None
    assert machine._cgroup_cores(tmp_path / "missing") is None
    assert machine.physical_cores() >= 1
