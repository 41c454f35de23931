"""A check as JUnit XML, as Jenkins, GitLab and GitHub's actions read it.

No standard defines the format; what is written keeps to what the two schemas in common use (of
Jenkins' xUnit plugin, and of Windy Road) both allow: at most one of failure, error and skipped in a
case, and system-out behind it. One suite for each output. What is wrong is a failure; a gate that
could not be decided is an error of the type "inconclusive".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from xml.etree import ElementTree as ET

from qconvert.runtimes.findings import CheckReport, Finding, Stage
from qconvert.runtimes.measure import Distance

NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What no XML 1.0 document can hold, not even escaped."""

ALWAYS: tuple[Stage, ...] = ("file", "settings", "tokens", "bytes", "runtime", "numbers")
SHOWN = 200  # characters of a message; the whole text stands below it


@dataclass(frozen=True, slots=True)
class Case:
    """One row of a test report."""

    name: str
    said: str = ""  # what was found; empty: it holds
    kind: str = ""  # "failure", "error" or "skipped", where it does not
    type: str = ""
    out: str = ""
    seconds: float = 0.0


def junit(reports: Sequence[CheckReport]) -> str:
    """The XML of one or several checks, a declaration of UTF-8 in front."""
    root = ET.Element("testsuites", name="qconvert check")
    names = _names(reports)
    every = []
    for report, name in zip(reports, names, strict=True):
        cases = list(_cases(report))
        every += cases
        suite = ET.SubElement(root, "testsuite", _counts(cases, report.seconds) | {"name": name})
        told = ET.SubElement(suite, "properties")
        for key, value in _properties(report):
            ET.SubElement(told, "property", name=key, value=_clean(value))
        for case in cases:
            _write(suite, case, f"qconvert.{name.replace('.', '_')}")
    root.attrib |= _counts(every, sum(report.seconds for report in reports))
    del root.attrib["skipped"]  # which the schemas know of suites alone
    ET.indent(root)
    text = ET.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _names(reports: Sequence[CheckReport]) -> list[str]:
    """File names; paths where two are the same."""
    short = [_clean(PurePath(report.file.path).name or report.file.path) for report in reports]
    seen = Counter(short)
    return [
        name if seen[name] == 1 else _clean(report.file.path)
        for name, report in zip(short, reports, strict=True)
    ]


def _counts(cases: Sequence[Case], seconds: float) -> dict[str, str]:
    kinds = Counter(case.kind for case in cases)
    return {
        "tests": str(len(cases)),
        "failures": str(kinds["failure"]),
        "errors": str(kinds["error"]),
        "skipped": str(kinds["skipped"]),
        "time": f"{seconds:.3f}",
    }


def _write(suite: ET.Element, case: Case, owner: str) -> None:
    element = ET.SubElement(
        suite, "testcase", name=_clean(case.name), classname=owner, time=f"{case.seconds:.3f}"
    )
    if case.kind:
        said = _clean(case.said)
        first = said.partition("\n")[0]
        message = first if len(first) <= SHOWN else f"{first[: SHOWN - 3]}..."
        attributes = {"message": message} | ({"type": case.type} if case.type else {})
        ET.SubElement(element, case.kind, attributes).text = said
    if case.out:
        ET.SubElement(element, "system-out").text = _clean(case.out)


def _cases(report: CheckReport) -> Iterator[Case]:
    """Stages in the order in which causes come, then each gate."""
    left = list(report.findings)
    for stage in ALWAYS:
        if stage == "runtime":
            yield from _loaders(report, left)
        own = [one for one in left if one.stage == stage]
        seconds = report.seconds if stage == "numbers" else 0.0  # where nearly all of it goes
        if own:
            yield _failed(stage, own, seconds)
        else:
            why = _not_looked_at(report).get(stage, "")
            kind = "skipped" if why else ""
            yield Case(stage, why, kind, out=_told(report).get(stage, ""), seconds=seconds)
    for one in report.judgements:
        kind = {"PASS": "", "FAIL": "failure", "INCONCLUSIVE": "error"}[one.verdict]
        name = f"gate {one.gate}"
        said = one.told if kind else ""
        yield Case(name, said, kind, one.verdict.lower() if kind else "", one.told)
    if report.verdict == "FAIL" and not any(_fails(report)):
        yield Case("verdict", "\n".join(report.reasons) or "the check failed", "failure", "check")


def _fails(report: CheckReport) -> Iterator[bool]:
    yield bool(report.findings)
    yield from (one.verdict == "FAIL" for one in report.judgements)


def _loaders(report: CheckReport, findings: Sequence[Finding]) -> Iterator[Case]:
    """A case for each; what is said of a loader that none was called, is one more."""
    own = [one for one in findings if one.stage == "loader"]
    for loader in report.loaders:
        mine = [one for one in own if one.culprit == loader.name]
        own = [one for one in own if one.culprit != loader.name]
        name = f"loader {loader.name}"
        yield _failed(name, mine) if mine else Case(name, out=loader.label)
    if own:
        yield _failed("loader", own)


def _failed(name: str, findings: Sequence[Finding], seconds: float = 0.0) -> Case:
    said = "\n".join(f"{one.culprit}: {one.problem}" for one in findings)
    return Case(name, said, "failure", findings[0].stage, seconds=seconds)


def _not_looked_at(report: CheckReport) -> dict[str, str]:
    found = {}
    if report.runtime is None:
        found["runtime"] = "no runtime was run"
    if report.tokens is None:
        found["tokens"] = "the tokens of a runtime were not compared"
    return found


def _told(report: CheckReport) -> dict[str, str]:
    """What is said of stages in which nothing is wrong."""
    found = {
        "file": f"{report.file.nbytes:,} bytes in {report.file.files} files",
        "bytes": f"{len(report.tensors)} tensors were compared with the source",
        "numbers": "\n".join(f"{key}: {value}" for key, value in _numbers(_best(report))),
    }
    if report.tokens is not None:
        found["tokens"] = f"{report.tokens.strings} strings were cut"
    if report.runtime is not None:
        found["runtime"] = report.runtime.version
    return found


def _best(report: CheckReport) -> Distance:
    """From the source to what a user gets, as far as was measured."""
    return report.total or report.as_told or report.quantization


def _numbers(distance: Distance) -> Iterator[tuple[str, str]]:
    for key in ("kl_mean", "kl_median", "kl_p99", "kl_p999", "top1", "perplexity_ratio"):
        told = f"{getattr(distance, key):.6g}"
        if distance.intervals is not None:
            one = getattr(distance.intervals, key)
            told += f" ({one.low:.6g} to {one.high:.6g})"
        yield key, told


def _properties(report: CheckReport) -> Iterator[tuple[str, str]]:
    yield "verdict", report.verdict
    yield "bytes", str(report.file.nbytes)
    yield "bits_per_weight", f"{report.file.bits_per_weight:.4g}"
    yield "model", PurePath(report.model).name
    if report.runtime is not None:
        yield "runtime", report.runtime.version
        yield "threads", str(report.runtime.threads)
    yield "text", report.text.name
    yield "text_sha256", report.text.sha256
    yield "positions", str(_best(report).positions)
    yield from _numbers(_best(report))
    yield from ((f"note {at}", note) for at, note in enumerate(report.notes, 1))


def _clean(text: str) -> str:
    return NOT_XML.sub("\ufffd", text)
