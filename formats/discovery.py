"""Finding what a package offers by looking into its modules: nothing is registered anywhere."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from typing import Any


def offered(package: str, attribute: str, *, inside: str = "") -> dict[str, Any]:
    """Name -> the value of `attribute` in each module of `package` that has one, by its own `name`,
    in the order of the modules. `inside`: where to look in packages below it, if they have that.

    `RuntimeError` when two have the same name.
    """
    above = importlib.import_module(package)
    found: dict[str, Any] = {}
    for info in sorted(pkgutil.iter_modules(above.__path__), key=lambda info: info.name):
        name = f"{package}.{info.name}"
        if info.ispkg and inside:
            name = f"{name}.{inside}"
            if importlib.util.find_spec(name) is None:
                continue
        one = getattr(importlib.import_module(name), attribute, None)
        if one is None:
            continue
        if one.name in found:
            raise RuntimeError(f"two modules of {package} offer {one.name!r}")
        found[one.name] = one
    return found
