"""What a manifest keeps: sums of files, and how an output was judged."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path, PurePath
from typing import Any

import qconvert
from qconvert.runtimes.findings import CheckReport, Finding, Interval, Judgement, Verdict
from qconvert.runtimes.gate.gates import Gates

SCHEMA = 1
FIGURES = ("kl_mean", "kl_median", "kl_p99", "kl_p999", "top1", "perplexity_ratio")


@dataclass(frozen=True, slots=True)
class Checked:
    """A verdict, and what it rests on. An infinite end of an interval is null in JSON."""

    verdict: Verdict
    gates: Mapping[str, float]
    judgements: tuple[Judgement, ...]
    findings: tuple[Finding, ...]
    figures: Mapping[str, Interval]  # from the source to what a user gets, by the field's name
    text: Mapping[str, Any]  # name, sha256, windows, length
    runtime: Mapping[str, Any] | None  # name, version, threads


@dataclass(frozen=True, slots=True)
class Sum:
    """What a file holds."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Files:
    """The files of a model or an output, by their names in its folder, with "/" between parts."""

    name: str
    files: Mapping[str, Sum]


@dataclass(frozen=True, slots=True)
class Manifest:
    """The record. Mappings hold what JSON can."""

    source: Files
    output: Files
    made: Mapping[str, Any] | None = None  # target, type, method, ...
    calibration: Mapping[str, Any] | None = None  # digest, origin, rows, length, seed
    versions: Mapping[str, str] = field(default_factory=dict)
    checked: Checked | None = None
    qconvert: str = qconvert.__version__
    path: Path | None = field(default=None, compare=False)  # that it was read from; not part of it


def checked(report: CheckReport, gates: Gates) -> Checked:
    """What is recorded of a report: no place, no time."""
    distance = report.total or report.as_told or report.quantization
    between = distance.intervals
    figures = {
        name: getattr(between, name) if between is not None else _alone(getattr(distance, name))
        for name in FIGURES
    }
    text, runtime = report.text, report.runtime
    return Checked(
        verdict=report.verdict,
        gates={gate.key: limit for gate, limit in gates.asked()},
        judgements=report.judgements,
        findings=tuple(
            Finding(one.stage, one.culprit, _placeless(one.problem)) for one in report.findings
        ),
        figures=figures,
        text={
            "name": text.name,
            "sha256": text.sha256,
            "windows": text.windows,
            "length": text.length,
        },
        runtime=None
        if runtime is None
        else {"name": runtime.name, "version": runtime.version, "threads": runtime.threads},
    )


def plain(value: Any) -> Any:
    """As JSON can hold it; a float that is not finite is null."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return PurePath(value).name if isinstance(value, PurePath) else str(value)


def _alone(value: float) -> Interval:
    return Interval(value, value, value)


def _placeless(text: str) -> str:
    """Without the folders in front of a file's name, where a sentence has a whole path."""
    return re.sub(r"(?<![\w.:/])(?:[A-Za-z]:)?[/\\](?:[^\s/\\:'\"]+[/\\])+", "", text)
