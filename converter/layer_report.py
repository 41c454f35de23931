"""What the engine found in each layer, as plain values: one dictionary for JSON, tables and HTML.

Errors are of a linear's output on held-out rows, relative to the output's own mean square.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from qconvert.asked import Calibrated
from qconvert.engine.record import BlockRecord, LinearRecord
from qconvert.progress import block_error
from qconvert.units import size

READERS: Mapping[str, str] = {
    "attn_in": "q, k, v", "attn_mid": "o", "ffn_in": "gate, up", "ffn_mid": "down",
}  # fmt: skip
"""An input of a block -> the linears that read it, as people call them."""


def gain(plain: float, kept: float) -> float | None:
    """The share of the plain fit's error that is gone: 0.4 is 40 percent less."""
    return 1 - kept / plain if plain > 0 else None


def mean(values: Iterable[float]) -> float:
    """The arithmetic mean of at least one value."""
    listed = list(values)
    return sum(listed) / len(listed)


def of_calibrated(done: Calibrated) -> dict[str, Any]:
    """All that the engine said, flat: `linears`, `inputs` and `blocks` are tables of records. The
    block of an embedding or a head is None.

    Keys `seconds` and `peak_bytes` of `blocks` are the only values that vary from run to run.
    """
    return {
        "method": done.method,
        "steps": list(done.steps),
        "calibration": None if done.calibration is None else asdict(done.calibration),
        "seed": done.seed,
        "effort": done.effort,
        "device": done.device,
        "resumed_blocks": done.resumed,
        "work": None if done.work is None else str(done.work),
        "by_role": by_role(done.blocks, done.outside),
        "by_input": by_input(done.blocks),
        "linears": [
            *(_linear(block.index, one) for block in done.blocks for one in block.linears),
            *(_linear(None, one) for one in done.outside),
        ],
        "inputs": [
            {"block": block.index, **asdict(one), "largest": list(one.largest)}
            for block in done.blocks
            for one in block.inputs
        ],
        "blocks": [
            {
                "index": block.index, "error": block_error(block),
                "seconds": block.seconds, "peak_bytes": block.peak_bytes,
            }
            for block in done.blocks
        ],
    }  # fmt: skip


def _linear(block: int | None, one: LinearRecord) -> dict[str, Any]:
    return {
        "block": block,
        **asdict(one),
        "steps": list(one.steps),
        "gain": gain(one.plain_error, one.error),
    }


def by_role(
    blocks: Sequence[BlockRecord], outside: Sequence[LinearRecord] = ()
) -> list[dict[str, Any]]:
    """Per role of linear, in the order of computation: mean errors over the blocks; then what lies
    outside them."""
    roles: dict[str, list[tuple[int | None, LinearRecord]]] = {}
    for block in blocks:
        for one in block.linears:
            roles.setdefault(one.role, []).append((block.index, one))
    for one in outside:
        roles.setdefault(one.role, []).append((None, one))
    found = []
    for role, members in roles.items():
        linears = [one for _, one in members]
        plain, kept = mean(one.plain_error for one in linears), mean(one.error for one in linears)
        worst_block, worst = max(members, key=lambda member: member[1].error)
        found.append(
            {
                "role": role, "count": len(linears), "grids": sorted({one.grid for one in linears}),
                "plain_error": plain, "error": kept, "gain": gain(plain, kept),
                "worst_block": worst_block, "worst_error": worst.error,
            }
        )  # fmt: skip
    return found


def by_input(blocks: Sequence[BlockRecord]) -> list[dict[str, Any]]:
    """Per input of a block: the extremes over the blocks, and where they are."""
    names = dict.fromkeys(one.name for block in blocks for one in block.inputs)
    found = []
    for name in names:
        members = [(b.index, one) for b in blocks for one in b.inputs if one.name == name]
        outlier_block, outlier = max(members, key=lambda member: member[1].outlier)
        kurtosis_block, kurtosis = max(members, key=lambda member: member[1].kurtosis)
        found.append(
            {
                "name": name, "read_by": READERS.get(name, name), "count": len(members),
                "outlier": outlier.outlier, "outlier_block": outlier_block,
                "kurtosis": kurtosis.kurtosis, "kurtosis_block": kurtosis_block,
                "channels": sum(one.channels for _, one in members),
                "dead": sum(one.dead for _, one in members),
            }
        )  # fmt: skip
    return found


def worst_linears(result: Mapping[str, Any], count: int) -> list[Mapping[str, Any]]:
    """The `count` linears of `of_calibrated` with the largest error kept, the largest first."""
    found: list[Mapping[str, Any]] = sorted(result["linears"], key=lambda one: -one["error"])
    return found[:count]


def without_time(result: Mapping[str, Any]) -> dict[str, Any]:
    """`of_calibrated` without what varies from run to run of the same conversion."""
    varying = {"seconds", "peak_bytes"}
    kept = {key: value for key, value in result.items() if key not in ("resumed_blocks", "work")}
    kept["blocks"] = [
        {key: value for key, value in block.items() if key not in varying}
        for block in result["blocks"]
    ]
    return kept


def calibration_rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How the weights were optimised: facts and their values."""
    rows = [("method", method_line(result))]
    facts = result["calibration"]
    if facts is not None:
        rows.append(("calibrated on", calibration_line(facts)))
    if result["resumed_blocks"]:
        rows.append(("resumed", f"{result['resumed_blocks']} of {len(result['blocks'])} blocks"
                                " were finished by an earlier run"))  # fmt: skip
    if result["work"] is not None:
        rows.append(("work folder", result["work"]))
    return rows


def method_line(result: Mapping[str, Any]) -> str:
    """The method, and the algorithms that it stands for."""
    steps = ", ".join(result["steps"])
    return f"{result['method']} ({steps})" if steps else str(result["method"])


def calibration_line(facts: Mapping[str, Any]) -> str:
    """Which text, how much of it, and its digest in short."""
    return f"{_text_line(facts)}, sha256 {facts['digest'][:12]}"


def planned_rows(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is to be calibrated on, and how: `estimate.Calibrating` as plain values."""
    return [
        ("calibrated on", _text_line(data)),
        ("computed in", f"{data['compute']} inside a block, on the {data['device']}"),
    ]


def work_rows(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the work folder takes, and a CUDA device."""
    parts, states = size(data["work_bytes"]), size(data["states_bytes"])
    rows = [
        ("work folder", f"{data['work']}: {parts} of finished parts, {states} of hidden states")
    ]
    if data["device_bytes"]:
        waits = "; what is not at work waits on the processor" if data["waits"] else ""
        rows.append(("device memory", f"about {size(data['device_bytes'])} at most{waits}"))
    return rows


def _text_line(facts: Mapping[str, Any]) -> str:
    chat = ", through the chat template" if facts["chat"] else ""
    return (
        f"{facts['origin']}: {facts['rows']} rows of {facts['length']} tokens{chat},"
        f" {facts['held_rows']} of them held out"
    )


def gain_cell(value: float | None) -> str:
    """The share of the error that is gone, in whole percent."""
    return "-" if value is None else f"{round(100 * value)} %"
