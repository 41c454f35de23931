"""Every algorithm, found by looking: a new file in a slot's package is all that it takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qconvert.algorithms.slots import BlockRound, Fit, Round, Transform
from qconvert.formats.discovery import offered


def transforms() -> Mapping[str, Transform]:
    """By name, in the order of their names."""
    return _found("transforms", "TRANSFORM")


def fits() -> Mapping[str, Fit]:
    return _found("fits", "FIT")


def rounds() -> Mapping[str, Round]:
    return _found("rounds", "ROUND")


def block_rounds() -> Mapping[str, BlockRound]:
    return _found("blocks", "BLOCK")


def _found(slot: str, attribute: str) -> dict[str, Any]:
    return offered(f"qconvert.algorithms.{slot}", attribute)
