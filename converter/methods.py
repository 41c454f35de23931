"""The named methods as users are told of them, and a list of all algorithms there are.

What a name stands for is decided in `recipe.py`; this module is light, for the help texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules

SLOTS = {"transform": "transforms", "fit": "fits", "round": "rounds", "block": "blocks"}
"""Slot of a recipe -> the package of its algorithms; a module is one when it has the slot's name in
capitals."""


@dataclass(frozen=True, slots=True)
class Named:
    """A preset: a name for a whole recipe."""

    name: str
    summary: str
    cost: str
    data: bool  # whether it looks at calibration text


NAMED = (
    Named("rtn", "scales searched per weight, nearest codes", "seconds; no data", False),
    Named("hqq", "scales by half-quadratic splitting, robust to outliers",
          "seconds; no data", False),
    Named("awq", "scale up the channels that activations make important",
          "a pass of the text, and a search per input", True),
    Named("gptq", "each column makes good the error of those before it",
          "a pass of the text, and a factorisation per input", True),
    Named("smoothquant", "move outliers from activations into weights",
          "a pass of the text", True),
    Named("osplus", "as smoothquant, with a shift; needs biases",
          "a pass of the text, and a search per input", True),
    Named("quarot", "rotate the model so that no channel stands out; unties the head",
          "seconds, and more disk", False),
    Named("best", "gptq, coordinate descent and re-fitted scales; a step is kept only where it"
          " helps", "about twice gptq; the most accurate", True),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Algorithm:
    """What fills a slot."""

    slot: str
    name: str
    summary: str


def algorithms() -> Iterator[Algorithm]:
    """All that fill a slot, found by looking; by slot in the order of a recipe, then by name."""
    for slot, package in SLOTS.items():
        folder = import_module(f"qconvert.algorithms.{package}")
        for module in sorted(iter_modules(folder.__path__), key=lambda one: one.name):
            found = getattr(import_module(f"{folder.__name__}.{module.name}"), slot.upper(), None)
            if found is not None:
                yield Algorithm(slot, found.name, found.summary)


def method_lines(width: int = 13) -> str:
    """One line per named method, for a help text."""
    return "\n".join(f"  {one.name:{width}}{one.summary}\n  {'':{width}}  {one.cost}"
                     for one in NAMED)  # fmt: skip
