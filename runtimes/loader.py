"""Loader: a program, or a restatement of its rules, that reads an output and computes nothing.

Where the runtime itself cannot run, its vendor's loader still proves that names, types and shapes
are what is looked for. A module of `qconvert.runtimes`, or the module `loader` of a package in it,
that has an attribute `LOADER` is one: nothing is registered anywhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from qconvert.formats.discovery import offered
from qconvert.formats.source import Source


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a loader made of an output."""

    problems: tuple[str, ...] = ()  # one line each: why the program would not do what is meant
    version: str = ""  # of the program; empty for a restatement
    tensors: int | None = None  # that it took; None where that is not counted
    skipped: int | None = None  # that it left
    layers: Mapping[str, int] = field(default_factory=dict)  # its class of a linear -> how many
    notes: tuple[str, ...] = ()


class Loader(Protocol):
    """One more attribute is looked for: `recipes`, how its environment is made (`environments`)."""

    @property
    def name(self) -> str:
        """As after `qconvert runtimes install`: "edge-llm"."""
        ...

    @property
    def label(self) -> str:
        """What is claimed where it finds no problem, one line: "X 0.11.0 loads it"."""
        ...

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the targets whose outputs it reads."""
        ...

    @property
    def install(self) -> str:
        """The one line that makes it usable; empty where it always is."""
        ...

    def unavailable(self) -> str | None:
        """None when usable here, else the reason in one line."""
        ...

    def passes_over(self, path: Path) -> str:
        """Why it does not read this output, though it reads others of the target: one line. Empty
        where it reads it."""
        ...

    def load(self, path: Path, source: Source) -> Loaded:
        """Read an output that was made of `source`, and compare with what the configuration and the
        source make expected. `Refused` where it does not read it, `RuntimeFailed` where it ends,
        `MissingRuntime` when it cannot be used here."""
        ...


def loaders() -> dict[str, Loader]:
    """Every loader, by name."""
    return offered("qconvert.runtimes", "LOADER", inside="loader")


def loaders_of(target: str) -> tuple[Loader, ...]:
    """Those that read outputs of `target`."""
    return tuple(one for one in loaders().values() if target in one.targets)
