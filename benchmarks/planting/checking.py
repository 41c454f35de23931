"""The product's own check of one output, in one call: what the benchmark scores."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from qconvert.checkpoint import Checkpoint, open_checkpoint
from qconvert.engine.bundle import open_bundle
from qconvert.formats.refusal import MissingRuntime, Refused
from qconvert.formats.target import target_named
from qconvert.runtimes.check import Output, check_output
from qconvert.runtimes.findings import CheckReport, Finding
from qconvert.runtimes.gate.manifest import make_manifest, verify
from qconvert.runtimes.gate.recorded import Manifest
from qconvert.runtimes.loader import loaders_of
from qconvert.runtimes.runtime import Runtime, runtimes
from qconvert.runtimes.second.agreement import differences
from qconvert.runtimes.yardstick import Yardstick, yardstick


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check said, and what it measured on the way."""

    verdict: str  # "PASS", "FAIL", "INCONCLUSIVE"; "REFUSED", "CRASHED" where it ended
    culprits: tuple[str, ...]  # causes first
    reasons: tuple[str, ...]
    kl: float | None = None  # source -> the runtime, or the decoded file where none was run; nats
    ratio: float | None = None  # perplexity over the source's, of the same
    seconds: float = 0.0

    @property
    def detected(self) -> bool:
        return self.verdict not in ("PASS", "CRASHED")

    def joined(self, other: Checked) -> Checked:
        """What both together tell, this one first."""
        verdict = self.verdict if self.detected else other.verdict
        return Checked(
            verdict, self.culprits + other.culprits, self.reasons + other.reasons,
            other.kl, other.ratio, self.seconds + other.seconds,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Asking:
    """How outputs are checked."""

    windows: int
    length: int
    threads: int
    runtime: bool  # whether a runtime is run, where there is one


class Checker:
    """Checks outputs of one model, which is measured once."""

    def __init__(self, source: Checkpoint, ruler: Yardstick, asking: Asking) -> None:
        self._source, self._ruler, self._asking = source, ruler, asking

    @classmethod
    @contextmanager
    def of(cls, model: Path, asking: Asking) -> Iterator[Checker]:
        source = open_checkpoint(model)
        with ExitStack() as stack:
            ruler = stack.enter_context(
                yardstick(source, windows=asking.windows, length=asking.length,
                          threads=asking.threads)
            )  # fmt: skip
            yield cls(source, ruler, asking)

    def __call__(self, out: Path, target: str) -> Checked:
        """As `qconvert check OUT --against MODEL`."""
        began = time.perf_counter()
        try:
            report = check_output(self._output(out, target), self._ruler)
        except MissingRuntime:
            raise
        except Refused as refused:
            reasons = tuple(one.problem for one in refused.reasons)
            return Checked("REFUSED", (), reasons, seconds=time.perf_counter() - began)
        except Exception as error:  # a crash is a result of the benchmark, too
            told = f"{type(error).__name__}: {error}"
            return Checked("CRASHED", (), (told,), seconds=time.perf_counter() - began)
        return _checked(report, time.perf_counter() - began)

    def _output(self, out: Path, target: str) -> Output:
        runtime = _runtime(target) if self._asking.runtime else None
        reader = target_named(target).reader(out)
        return Output(out, reader, runtime, target, tuple(loaders_of(target)))

    def against_work(self, out: Path, target: str, work: Path) -> Checked:
        """What the kept work folder alone tells."""
        began = time.perf_counter()
        try:
            bundle = open_bundle(work)
            found = differences(target_named(target).reader(out).weights(bundle), bundle)
        except Refused as refused:
            told = tuple(one.problem for one in refused.reasons)
            return Checked("REFUSED", (), told, seconds=time.perf_counter() - began)
        except Exception as error:
            told = (f"{type(error).__name__}: {error}",)
            return Checked("CRASHED", (), told, seconds=time.perf_counter() - began)
        return _of(found, time.perf_counter() - began)


def manifest_of(good: Path, model: Path) -> Manifest:
    """The manifest that was written beside the good output."""
    files = None
    if good.is_file():
        files = sorted(one for one in good.parent.iterdir() if one.suffix == ".gguf")
    return make_manifest(good, model, files=files)


def against_manifest(manifest: Manifest, out: Path) -> Checked:
    """As `qconvert check --manifest`."""
    began = time.perf_counter()
    try:
        return _of(verify(manifest, out), time.perf_counter() - began)
    except Refused as refused:
        told = tuple(one.problem for one in refused.reasons)
        return Checked("REFUSED", (), told, seconds=time.perf_counter() - began)


def _of(found: list[Finding], seconds: float) -> Checked:
    culprits = tuple(one.culprit for one in found)
    reasons = tuple(one.problem for one in found)
    return Checked("FAIL" if found else "PASS", culprits, reasons, seconds=seconds)


def _checked(report: CheckReport, seconds: float) -> Checked:
    far = report.total or report.as_told or report.quantization
    culprits = tuple(one.culprit for one in report.findings)
    return Checked(
        report.verdict, culprits, report.reasons, far.kl_mean, far.perplexity_ratio, seconds
    )


def _runtime(target: str) -> Runtime | None:
    found = (one for one in runtimes().values() if one.target == target)
    served = (one for one in found if not getattr(one, "on_request", False))
    return next((one for one in served if one.unavailable() is None), None)
