"""Every algorithm, found by looking: a new file in a slot's package is all that it takes."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from qconvert.algorithms.slots import BlockRound, Fit, Round, Transform


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
    """Name -> algorithm, of the modules in the package of `slot` that have `attribute`."""
    package = importlib.import_module(f"qconvert.algorithms.{slot}")
    found: dict[str, Any] = {}
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        algorithm = getattr(module, attribute, None)
        if algorithm is None:
            continue
        if algorithm.name in found:
            raise RuntimeError(f"two files of {slot} call their algorithm {algorithm.name!r}")
        found[algorithm.name] = algorithm
    return found
