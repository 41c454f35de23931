"""What `check` and `bench` find out, as plain data that JSON can hold."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qconvert.formats.target import Reader
from qconvert.runtimes.diagnosis.tensor_error import TensorError
from qconvert.runtimes.gate.intervals import Interval as Interval
from qconvert.runtimes.measure import Distance
from qconvert.runtimes.runtime import Throughput

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]
Stage = Literal["file", "settings", "tokens", "bytes", "loader", "runtime", "numbers"]
"""Where a fault was seen, in the order in which causes come before their effects."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong with an output: the check fails for it, whatever the gates say."""

    stage: Stage
    culprit: str
    """What to look at: a tensor's name in the checkpoint, a setting ("rope_theta",
    "chat_template", "bos_token_id", "tokenizer"), "block 7", the name of a loader or runtime."""
    problem: str  # one sentence, with figures


@dataclass(frozen=True, slots=True)
class Judgement:
    """One gate, and whether the output passes it. INCONCLUSIVE: `limit` is inside `found`."""

    gate: str  # the option's name: "max-kl"
    limit: float
    found: Interval  # low and high are `value` where the figure is exact
    verdict: Verdict
    told: str  # one sentence; of an inconclusive one, what would decide


@dataclass(frozen=True, slots=True)
class LayerError:
    """How far the hidden state after one block is from the reference, relative to it."""

    block: int
    quantization: float  # source -> file as decoded
    runtime: float | None = None  # file as decoded -> runtime, where it lets its blocks be seen
    expected: float | None = None  # of `runtime`, from its rounding of activations


@dataclass(frozen=True, slots=True)
class WorstToken:
    """A position at which the output is furthest from the source."""

    window: int
    position: int
    before: str  # some text up to the position
    token: str  # what follows in the text
    kl: float  # nats
    source: str  # what the source puts first
    output: str  # what the output puts first


@dataclass(frozen=True, slots=True)
class Histogram:
    """Positions by KL: `counts[i]` lie in edges[i] <= KL < edges[i + 1] nats; the first and the
    last count hold what lies outside."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FileFacts:
    """The output that was looked at."""

    path: str
    files: int
    nbytes: int  # of all files
    bits_per_weight: float  # of the tensors alone
    types: dict[str, int]  # stored type -> tensors


@dataclass(frozen=True, slots=True)
class TextFacts:
    """The text that was measured on."""

    name: str
    sha256: str
    windows: int
    length: int  # tokens of each window, `prefix` included
    prefix: tuple[int, ...]  # tokens put in front of each window (BOS)


@dataclass(frozen=True, slots=True)
class TokenMismatch:
    """A text that the runtime encodes otherwise than the model's tokenizer."""

    text: str
    expected: tuple[int, ...]
    runtime: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TokenParity:
    strings: int
    mismatches: int
    examples: tuple[TokenMismatch, ...]  # the shortest few


@dataclass(frozen=True, slots=True)
class RuntimeFacts:
    name: str
    version: str
    threads: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Noise:
    """What the runtime adds, beside what it should add, over the same `windows`."""

    windows: int
    adds: Distance  # decoded file -> runtime
    expected: Distance  # decoded file -> decoded file with activations rounded as the runtime does
    beyond: Distance  # that rounded reference -> runtime: what its rounding does not explain
    floor: Distance | None  # source -> runtime on an unquantized file
    limit: float  # of adds.kl_mean, nats


@dataclass(frozen=True, slots=True)
class LoaderFacts:
    """What a program that reads the output, and computes nothing, made of it."""

    name: str
    label: str  # what is claimed where there is no problem
    version: str
    tensors: int | None  # that it took
    skipped: int | None  # that it left
    layers: dict[str, int]  # its class of a linear -> how many
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OtherWay:
    """The same file in the same runtime, run in another way; None where it gave no logits."""

    label: str  # "as users run it"
    adds: Distance | None  # file as decoded -> runtime
    total: Distance | None  # source -> runtime
    noise: Noise | None


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The outcome of a check. A distance is None where the runtime gave no logits, and so is all of
    a runtime where none was run: the file alone was looked at."""

    verdict: Verdict
    reasons: tuple[str, ...]  # why it failed
    notes: tuple[str, ...]
    file: FileFacts
    model: str
    runtime: RuntimeFacts | None
    text: TextFacts
    quantization: Distance  # source -> file as decoded
    runtime_adds: Distance | None  # file as decoded -> runtime
    total: Distance | None  # source -> runtime
    floor: Distance | None  # source -> runtime on an unquantized file
    noise: Noise | None
    tokens: TokenParity | None  # None: the model has no tokenizer.json
    tensors: tuple[TensorError, ...]
    seconds: float
    also: OtherWay | None = None  # in the way that users run it, where it is checked in another
    loaders: tuple[LoaderFacts, ...] = ()
    as_told: Distance | None = None
    """Source -> file as decoded, activations and cache rounded as the file says, in float32 else.
    Without a runtime only, and where the file asks for that."""
    decoded_twice: int = 0  # tensors, by a second reader that shares no code with the writers
    kept: bool = False  # whether they were compared with the work folder that was kept
    findings: tuple[Finding, ...] = ()  # causes first
    judgements: tuple[Judgement, ...] = ()
    layers: tuple[LayerError, ...] = ()
    worst: tuple[WorstToken, ...] = ()  # of the distance that gates are about
    histogram: Histogram | None = None  # of the same
    speed: BenchReport | None = None

    @property
    def passed(self) -> bool:
        return self.verdict == "PASS"


@dataclass(frozen=True, slots=True)
class Speedup:
    """How many times as fast as unquantized: the median over rounds that timed one and then the
    other, and where it lies with 95 % confidence (see `timed`)."""

    prompt_tokens: int
    sequences: int
    prompt: Interval
    generate: Interval


@dataclass(frozen=True, slots=True)
class BenchReport:
    """Speed and memory of an output in its runtime, with what they depend on."""

    file: FileFacts
    runtime: RuntimeFacts
    throughput: Throughput
    load_seconds: float  # from the start of the runtime's process to a loaded model
    peak_bytes: int  # of the runtime's process, the mapped file included
    processor: str
    busy_share: float  # of the cores, just before: above 0.2 the rates are doubtful
    notes: tuple[str, ...]
    batches: tuple[Throughput, ...] = ()
    """By length of the prompt, and then by sequences at once; `throughput` is the first."""
    beside: BenchReport | None = None  # an unquantized output, timed in alternation
    speedups: tuple[Speedup, ...] = ()  # as `batches`

    @property
    def speedup(self) -> Speedup | None:
        """That of `throughput`."""
        return self.speedups[0] if self.speedups else None


def file_facts(path: Path, reader: Reader) -> FileFacts:
    """Size and types of an opened output."""
    stored = reader.tensors.values()
    weights = sum(math.prod(tensor.shape) for tensor in stored)
    return FileFacts(
        path=str(path),
        files=len(reader.files),
        nbytes=sum(file.stat().st_size for file in reader.files),
        bits_per_weight=8 * sum(tensor.nbytes for tensor in stored) / max(weights, 1),
        types=dict(sorted(Counter(tensor.dtype for tensor in stored).items())),
    )
