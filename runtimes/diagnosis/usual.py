"""Tensors that are not like the others of their file: a scale that is a little off, some codes.

Every figure was measured on correct files: SmolLM2-135M (which some earlier quantization has
rounded) in all types of GGUF, serving folders, ONNX and MLC, by rounding to nearest and with error
feedback.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from qconvert.runtimes.diagnosis.statistics import Part, Statistics
from qconvert.runtimes.diagnosis.sums import COLUMNS

PEERS = 4  # fewer tensors of a role tell nothing of what is usual

STILL = 1e-4
"""Share of moved values up to which a tensor was rounded to nearest. None was met in 2700 tensors
that were; error feedback moves 1 to 11 %."""
MOSTLY = 0.9  # share of tensors that are still, where a file was rounded to nearest

SHIFTED = 0.05  # of groups: 0.00014 was met
ROW_OVER, COLUMN_OVER, OVER_ERROR = 12.0, 15.0, 0.1  # 3.9 and 4.5 were met
GROUPS = 0.01  # share of groups that a factor would mend (0.0013 was met), or that are zero

FACTOR_STILL = 0.003
"""Of a scale beside the peers', in a file that was rounded to nearest, where values are moved:
0.0027 was met (Q2_K), and no moved values with it."""
FACTOR_FINE, FINE = 0.003, 0.03
"""The same where the peers' usual error is below FINE: 0.0005 was met. Levels lie too close there
to see values that are moved."""
FACTOR_FED, FED_OVER = 0.012, 5.0
"""The same with error feedback: 0.0063 was met, and less than 3.5 times what nine in ten have."""

PASSED, PASSED_OF_MOVED = 5e-4, 0.3
"""Share of values that were passed over, and of them among the moved. Error feedback: 0.20."""
PASSED_FED, PASSED_OVER = 0.02, 2.5
"""The same in a file with error feedback: 0.0175 was met, less than twice what nine in ten have."""

FEW = 1e-3  # share of moved values of a tensor that is wrong in a group or two
CROWDED = 0.125  # of the values of a group: none was met where values were rounded to nearest


@dataclass(frozen=True, slots=True)
class Seen:
    """A matrix of the file that is within the limits of its bits."""

    name: str
    role: str
    found: Statistics


def alone(found: Statistics, *, fitted: bool = False) -> str:
    """What is wrong with a tensor whatever its peers are; empty: nothing. With `fitted` it was
    compared up to factors, which are never so exact that a part that is off tells anything."""
    local, levels = found.local, found.levels
    if levels.shifted > SHIFTED:
        return (
            f"has wrong zero points: in {levels.shifted:.0%} of the groups looked at all values are"
            " off alike, by a level or more"
        )
    if fitted:
        return ""
    if local.rescaled_rows:
        return (
            f"has wrong scales: a factor of its own would mend each of {local.rescaled_rows} rows"
        )
    if local.dead_groups > GROUPS:
        return f"is zero in {local.dead_groups:.1%} of its groups of {COLUMNS} columns in a row"
    if local.rescaled_groups > GROUPS:
        return (
            f"has wrong scales: a factor of its own would mend each of {local.rescaled_groups:.1%}"
            f" of the groups of {COLUMNS} columns in a row"
        )
    for part, most, where in (
        (local.row, ROW_OVER, f"row {local.row.row}"),
        (local.columns, COLUMN_OVER, f"columns {_columns(local.columns)}"),
    ):
        if part.over > most and part.error > OVER_ERROR:
            return f"is off by {part.error:.0%} in {where}, {part.over:.0f} times as much as usual"
    return ""


def _columns(part: Part) -> str:
    return f"{part.column} to {part.column + COLUMNS - 1}"


def unlike(seen: Sequence[Seen]) -> Iterator[tuple[str, str]]:
    """(name, what is wrong) of those that differ from their peers."""
    for at, one in enumerate(seen):
        others = [other for number, other in enumerate(seen) if number != at]
        problem = _scale(one, others) or _codes(one, others) or _group(one, others)
        if problem:
            yield one.name, problem


def _still(others: Sequence[Seen]) -> bool:
    """Whether the file was rounded to nearest."""
    return bool(np.mean([one.found.levels.moved < STILL for one in others]) >= MOSTLY)


def _scale(one: Seen, others: Sequence[Seen]) -> str:
    """A factor moves the slope of decoded on source one way, that of source on decoded the other;
    what else scatters them moves them alike, or one of them alone."""
    peers = [other.found for other in others if other.role == one.role]
    peers = peers if len(peers) >= PEERS else [other.found for other in others]
    if len(peers) < PEERS:
        return ""
    slope = float(np.median([peer.slope for peer in peers]))
    factor = float(np.median([peer.factor for peer in peers]))

    def off(found: Statistics) -> float:
        up, down = found.slope / slope - 1, 1 - found.factor / factor
        return 0.0 if up * down <= 0 else min(abs(up), abs(down)) * (1 if up > 0 else -1)

    found = off(one.found)
    usual = float(np.quantile([abs(off(peer)) for peer in peers], 0.9))
    fine = float(np.median([peer.error for peer in peers])) < FINE
    if fine:
        limit = max(FACTOR_FINE, FED_OVER * usual)
    elif _still(others):
        limit = FACTOR_STILL if one.found.levels.moved > STILL else FACTOR_FED
    else:
        limit = max(FACTOR_FED, FED_OVER * usual)
    if abs(found) <= limit:
        return ""
    times = (one.found.slope / slope / (one.found.factor / factor)) ** 0.5
    return (
        f"is {times:.3f} times what it should be: a wrong scale ({len(peers)} tensors like it"
        f" are within {usual:.2%})"
    )


def _codes(one: Seen, others: Sequence[Seen]) -> str:
    if len(others) < PEERS:
        return ""
    levels = one.found.levels
    if levels.passed < max(PASSED, PASSED_OF_MOVED * levels.moved):
        return ""
    usual = float(np.quantile([other.found.levels.passed for other in others], 0.9))
    if not _still(others) and levels.passed < max(PASSED_FED, PASSED_OVER * usual):
        return ""
    return (
        f"has wrong codes: {levels.moved:.2%} of its values stand further from the source than a"
        f" level beside them, {levels.passed:.2%} by a whole level (other tensors: {usual:.2%})"
    )


def _group(one: Seen, others: Sequence[Seen]) -> str:
    """In a file that was rounded to nearest no value passes over a level; in the rows that are
    furthest off, a group in which many do is wrong."""
    found, suspect = one.found, one.found.suspect
    if len(others) < PEERS or suspect.crowded < CROWDED or found.levels.moved > FEW:
        return ""
    usual = max(other.found.suspect.crowded for other in others)
    if not _still(others) or usual > 0:
        return ""
    return (
        f"has values that are off by whole levels, such as in columns"
        f" {_columns(found.group)} of row {found.group.row}, off by {found.group.error:.0%}:"
        " a wrong scale or wrong codes"
    )
