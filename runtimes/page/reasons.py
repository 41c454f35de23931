"""The verdict in a sentence, and why it is not PASS."""

from __future__ import annotations

from dataclasses import dataclass

from qconvert.runtimes.findings import CheckReport
from qconvert.runtimes.page.words import count

STAGES = {
    "file": "file", "settings": "settings", "tokens": "tokens", "bytes": "weights",
    "loader": "loader", "runtime": "runtime", "numbers": "numbers",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an output does not pass: what to look at, and what is wrong with it."""

    stage: str
    culprit: str
    problem: str


def says(report: CheckReport) -> str:
    """The verdict in one sentence."""
    missed = [one for one in report.judgements if one.verdict == "FAIL"]
    open_ = [one for one in report.judgements if one.verdict == "INCONCLUSIVE"]
    alone = "" if report.runtime else " No runtime was run: this is of the file alone."
    if report.passed:
        gates = (
            "No gate was set" if not report.judgements
            else "The gate holds" if len(report.judgements) == 1
            else f"All {len(report.judgements)} gates hold"
        )  # fmt: skip
        return f"{gates}, and no fault was found.{alone}"
    faults = len(reasons(report)) - len(missed) - len(open_)
    parts = []
    if faults > 0:
        parts.append(f"{count(faults, 'fault')} found")
    if missed:
        parts.append(f"{count(len(missed), 'gate')} missed")
    if open_:
        parts.append(f"{count(len(open_), 'gate')} that cannot be decided yet")
    told = ", ".join(parts) or "It does not pass"
    return f"{told[0].upper()}{told[1:]}.{alone}"


def reasons(report: CheckReport) -> list[Reason]:
    """Findings, causes first; then gates that do not hold; then what else was given as a reason."""
    found = [
        Reason(STAGES.get(one.stage, one.stage), one.culprit, one.problem)
        for one in report.findings
    ]
    found += [
        Reason("gate", one.gate, one.told) for one in report.judgements if one.verdict != "PASS"
    ]
    told = {one.problem for one in found}
    others = [one for one in report.reasons if not any(problem in one for problem in told)]
    return found + [Reason("", "", one) for one in others]
