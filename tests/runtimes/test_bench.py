from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import pytest

from qconvert.formats.gguf.target import TARGET
from qconvert.formats.refusal import Refused
from qconvert.runtimes import bench as bench_module
from qconvert.runtimes import machine, timed
from qconvert.runtimes.bench import bench, doubts
from qconvert.runtimes.findings import Interval
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


def test_beside_an_unquantized_output(runtime: LlamaCpp, tiny_gguf: Callable[..., Path]) -> None:
    out, plain = tiny_gguf("Q8_0"), tiny_gguf("F16")
    found = bench(
        out, runtime, reader=TARGET.reader(out), prompts=(16, 32), generate=4, repetitions=3,
        threads=1, beside=plain,
    )  # fmt: skip
    assert found.beside is not None
    assert found.beside.file.path == str(plain)
    assert found.beside.beside is None
    assert [one.prompt_tokens for one in found.batches] == [16, 32]
    for ours, theirs, gain in zip(found.batches, found.beside.batches, found.speedups, strict=True):
        assert (gain.prompt_tokens, gain.sequences) == (ours.prompt_tokens, ours.sequences)
        assert len(ours.prompt_rates) == len(theirs.prompt_rates) == ours.repetitions == 3
        ratios = [a / b for a, b in zip(ours.generate_rates, theirs.generate_rates, strict=True)]
        assert gain.generate.value == sorted(ratios)[1]
        assert gain.generate.low <= gain.generate.value <= gain.generate.high
    assert found.speedup == found.speedups[0]
    json.dumps(asdict(found))


class Recorded:
    """A runtime that writes down who was asked for what; out runs twice as fast as plain."""

    name = target = "gguf"
    install = ""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, bool]] = []
        self.open_now = 0

    def unavailable(self) -> None: ...
    def version(self) -> str:
        return "1"

    def open(self, path: Path, *, threads: int, context: int) -> Any:
        self.open_now += 1
        outer, speed, slow = self, 2.0 if "Q8" in path.name else 1.0, iter([1.0, 3.0, 5.0, 1.0])

        class Opened:
            notes = (path.name,)

            def throughput(
                self, prompt: int, generate: int, repetitions: int, sequences: int, *, warm: bool
            ) -> Throughput:
                outer.asked.append((path.name, repetitions, warm))
                rate = [speed / next(slow) for _ in range(repetitions)]
                told = timed.rates(rate, rate, prompt)
                return replace(STEADY, **told)

            def peak_bytes(self) -> int:
                return outer.open_now

            def __enter__(self) -> Opened:
                return self

            def __exit__(self, *error: object) -> None:
                outer.open_now -= 1

        return Opened()


@pytest.mark.parametrize("room", [10**12, 0])
def test_two_files_take_turns_where_memory_holds_both(
    room: int, tiny_gguf: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that gets slower, and fast again, slows both: no doubt about their ratio."""
    monkeypatch.setattr(machine, "available_bytes", lambda: room)
    out, plain, runtime = tiny_gguf("Q8_0"), tiny_gguf("F16"), Recorded()
    reader = TARGET.reader(out)
    found = bench(out, cast(Any, runtime), reader=reader, repetitions=4, beside=plain)
    o, p = out.name, plain.name
    assert found.beside is not None
    if room:
        first = [(o, 1, True), (p, 1, True), (p, 1, False), (o, 1, False)]
        assert runtime.asked == first + [(*one[:2], False) for one in first]
        assert found.peak_bytes == 2  # both were open
    else:
        assert runtime.asked == [(o, 4, True), (p, 4, True)]
        assert found.peak_bytes == 1
    assert (bench_module.APART in found.notes) == (not room)
    assert found.speedup is not None
    assert found.speedup.prompt == Interval(2.0, 2.0, 2.0)
    assert found.throughput.prompt_rates == (2.0, 2 / 3, 0.4, 2.0)
    assert found.beside.notes[0] == p


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
