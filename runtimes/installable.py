"""All that `qconvert runtimes install` can build an environment for: runtimes, and loaders."""

from __future__ import annotations

from typing import Any, Protocol

from qconvert.runtimes.environments import Recipe
from qconvert.runtimes.loader import loaders
from qconvert.runtimes.runtime import runtimes


class Installable(Protocol):
    """A runtime or a loader that says how its environment is made."""

    @property
    def name(self) -> str: ...
    @property
    def install(self) -> str: ...
    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """The first is of the machine at hand."""
        ...

    def unavailable(self) -> str | None: ...
    def version(self) -> str: ...


def installable() -> dict[str, Installable]:
    """By name, runtimes first.

    `RuntimeError` when a runtime and a loader have the same name: their environments would, too.
    """
    found: dict[str, Installable] = {}
    known: list[Any] = [*runtimes().values(), *loaders().values()]
    for one in known:
        if not getattr(one, "recipes", ()):
            continue
        if one.name in found:
            raise RuntimeError(f"a runtime and a loader are called {one.name!r}")
        found[one.name] = one
    return found
