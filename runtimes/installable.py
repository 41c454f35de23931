"""All that `qconvert runtimes install` can build an environment for: runtimes, and loaders."""

from __future__ import annotations

from typing import Any

from qconvert.runtimes.loader import Loader, loaders
from qconvert.runtimes.runtime import Runtime, runtimes


def installable() -> dict[str, Runtime | Loader]:
    """Those that say how their environment is made (`recipes`), by name, runtimes first.

    `RuntimeError` when a runtime and a loader have the same name: their environments would, too.
    """
    found: dict[str, Runtime | Loader] = {}
    known: list[Any] = [*runtimes().values(), *loaders().values()]
    for one in known:
        if not getattr(one, "recipes", ()):
            continue
        if one.name in found:
            raise RuntimeError(f"a runtime and a loader are called {one.name!r}")
        found[one.name] = one
    return found
