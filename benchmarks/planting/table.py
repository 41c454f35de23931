"""Every fault, where it was seen, and the outputs that it is planted in.

Threads are given as repository#number. "traps" is the project's list of what exporters shipped: D
are defects found in their code, P what their users suffer from. FORMAT.md is the specification of
a format, by section.
"""

from __future__ import annotations

from planting.fault import Fault
from planting.table_told import TOLD
from planting.table_weights import WEIGHTS

FAULTS: tuple[Fault, ...] = (*WEIGHTS, *TOLD)


def cases() -> list[tuple[Fault, str]]:
    """Every fault in every output that it is planted in."""
    return [(fault, good) for fault in FAULTS for good in fault.on]
