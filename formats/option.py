"""Options that belong to one target alone, found by looking.

A package of `qconvert.formats` with a module `options` that has `OPTIONS` adds them to the command
line. What is set reaches the target in `Request.own`. That module, and what it imports, is loaded
for every `--help`: it holds data and nothing else.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from dataclasses import dataclass

OWN = "own"
"""The field of `Request` that holds them."""


@dataclass(frozen=True, slots=True)
class Option:
    """`--name VALUE`, one of `choices`; without choices a flag, whose value is "yes"."""

    name: str  # as it is typed, without dashes: "onnx-form"
    target: str  # of which it is
    help: str
    choices: tuple[str, ...] = ()


def target_options() -> tuple[Option, ...]:
    """Those of all targets, by target and name."""
    package = importlib.import_module("qconvert.formats")
    found: list[Option] = []
    for info in pkgutil.iter_modules(package.__path__):
        name = f"{package.__name__}.{info.name}.options"
        if info.ispkg and importlib.util.find_spec(name) is not None:
            found += importlib.import_module(name).OPTIONS
    return tuple(sorted(found, key=lambda one: (one.target, one.name)))
