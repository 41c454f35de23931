"""What the cases add up to: how many were found, how many named rightly, how many slipped by."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

Line = Mapping[str, Any]
GATES = (1.03, 1.05)  # of a gate on perplexity alone: a file's ratio over that of the good file
ARMS = ("source", "work", "manifest")


def bare(culprit: str) -> str:
    """Without what may be said or left out: a folder in front, ".weight" behind."""
    return culprit.rsplit("/", 1)[-1].removesuffix(".weight")


def is_right(culprit: str, expected: Collection[str]) -> bool:
    return bare(culprit) in {bare(one) for one in expected}


def named_in(text: str, expected: Collection[str]) -> bool:
    """Whether a refusal, which is a sentence, names one of them."""
    return any(bare(one) in text for one in expected)


def right(arm: Line, expected: Collection[str], *, first: bool) -> bool:
    """Whether the first culprit, or any, is one of those expected."""
    culprits, reasons = list(arm["culprits"]), list(arm["reasons"])
    if culprits:
        return any(is_right(one, expected) for one in (culprits[:1] if first else culprits))
    return any(named_in(one, expected) for one in (reasons[:1] if first else reasons))


def perplexity_says(line: Line, gate: float) -> bool:
    """Whether a gate on perplexity alone would have stopped it; a file that gives no number does
    not pass such a gate either."""
    arm, good = line["arms"]["source"], line["good_ratio"]
    if arm["ratio"] is None:
        return bool(arm["verdict"] in ("REFUSED", "CRASHED"))
    return not arm["ratio"] / good <= gate


def _share(lines: Sequence[Line], test: Callable[[Line], bool]) -> dict[str, Any]:
    hits = sum(map(test, lines))
    return {"of": len(lines), "is": hits, "share": round(hits / len(lines), 4) if lines else None}


def summary(lines: Iterable[Line]) -> dict[str, Any]:
    """All figures of the score, of the cases that were planted."""
    every = list(lines)
    cases = [one for one in every if one["kind"] == "fault"]
    goods = _goods(every)
    found: dict[str, Any] = {
        "faults": len({one["fault"] for one in cases}), "cases": len(cases),
        "crashed": sum(one["arms"]["source"]["verdict"] == "CRASHED" for one in cases),
        "unchanged": sorted(f"{one['fault']} ({one['good']})" for one in cases if one["unchanged"]),
        "still": sorted(f"{one['fault']} ({one['good']})" for one in cases if one["still"]),
        "false_alarms": {**_share(goods, lambda one: one["verdict"] != "PASS"),
                         "which": [one["good"] for one in goods if one["verdict"] != "PASS"]},
    }  # fmt: skip
    for arm in ARMS:
        having = [one for one in cases if arm in one["arms"]]
        caught = [one for one in having if one["arms"][arm]["detected"]]
        found[arm] = {"detected": _share(having, lambda one, arm=arm: one["arms"][arm]["detected"])}
        if arm == "manifest":  # it names files, never what is wrong in them
            continue
        found[arm] |= {
            "right_first": _share(caught, lambda one, arm=arm: one["arms"][arm]["right_first"]),
            "right_any": _share(caught, lambda one, arm=arm: one["arms"][arm]["right_any"]),
        }  # fmt: skip
    found["by_format"] = {
        name: _share([one for one in cases if one["format"] == name], _found)
        for name in sorted({one["format"] for one in cases})
    }
    real = [one for one in cases if one["model"] == "main"]
    found["perplexity_alone"] = {
        str(gate): _share(real, lambda one, gate=gate: perplexity_says(one, gate)) for gate in GATES
    }
    found["unseen"] = sorted(f"{one['fault']} ({one['good']})" for one in cases if not _found(one))
    return found


def _goods(lines: Sequence[Line]) -> list[Line]:
    """Every good output that was checked: those that faults were planted in, and the others."""
    whole = {one["good"]: one["good_verdict"] for one in lines if one["kind"] == "fault"}
    others = {one["good"]: one["arms"]["source"]["verdict"] for one in lines
              if one["kind"] == "good"}  # fmt: skip
    return [{"good": name, "verdict": verdict} for name, verdict in {**whole, **others}.items()]


def _found(line: Line) -> bool:
    return bool(line["arms"]["source"]["detected"])


def table(lines: Iterable[Line]) -> str:
    """Markdown, a row for each fault."""
    rows: dict[str, list[Line]] = {}
    for one in lines:
        if one["kind"] == "fault":
            rows.setdefault(one["fault"], []).append(one)
    head = "| fault | seen at | found | culprit first (any) | KL | perplexity alone | unseen in |"
    text = [head, "|---|---|---|---|---|---|---|"]
    for fault, cases in rows.items():
        caught = [one for one in cases if _found(one)]
        first = sum(one["arms"]["source"]["right_first"] for one in caught)
        any_ = sum(one["arms"]["source"]["right_any"] for one in caught)
        measured = [one["arms"]["source"]["kl"] for one in cases]
        known = [one for one in measured if one is not None and math.isfinite(one)]
        moved = f"{min(known):.2g} to {max(known):.2g}" if known else "-"
        weak = sum(perplexity_says(one, GATES[0]) for one in cases)
        unseen = ", ".join(one["good"] for one in cases if not _found(one)) or "-"
        text.append(
            f"| {fault} | {cases[0]['source']} | {len(caught)}/{len(cases)}"
            f" | {first} ({any_}) of {len(caught)} | {moved} | {weak}/{len(cases)} | {unseen} |"
        )
    return "\n".join(text) + "\n"
