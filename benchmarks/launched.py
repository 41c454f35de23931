"""Which Triton kernels are launched, and which of those no `VARIANTS` names. Not a script."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import triton

KERNELS = "_kernels"  # ends the names of modules that hold kernels and nothing else


def name_of(kernel: Any) -> str:
    return f"{kernel.__module__.rpartition('.')[2]}.{kernel.__name__}"


def uncovered(found: list[ModuleType]) -> list[str]:
    """Kernels of `found` that no variant compiles: all that a module names in order to launch it,
    and all that no other kernel calls."""
    rooms = [module for module in found if module.__name__.endswith(KERNELS)]
    own = {id(one): one for room in rooms for one in _jitted(room)}
    called = {id(one) for room in rooms for one in _named(room, inside=True)}
    launched = {id(one) for module in found if module not in rooms for one in _named(module)}
    made = {
        id(make().kernel) for module in found for make in getattr(module, "VARIANTS", {}).values()
    }
    return sorted(name_of(one) for key, one in own.items()
                  if (key not in called or key in launched) and key not in made)  # fmt: skip


def _jitted(module: ModuleType) -> Iterator[Any]:
    """Triton functions that `module` defines."""
    for one in vars(module).values():
        if isinstance(one, triton.JITFunction) and one.__module__ == module.__name__:
            yield one


def _named(module: ModuleType, inside: bool = False) -> Iterator[Any]:
    """Triton functions that `module` mentions anywhere, or `inside` its functions."""
    tree = ast.parse(Path(module.__file__ or "").read_text(encoding="utf-8"))
    scopes: list[ast.AST] = [tree]
    if inside:
        scopes = [part for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
                  for part in node.body]  # fmt: skip
    for node in (node for scope in scopes for node in ast.walk(scope)):
        one: Any = None
        if isinstance(node, ast.Name):
            one = getattr(module, node.id, None)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            one = getattr(getattr(module, node.value.id, None), node.attr, None)
        if isinstance(one, triton.JITFunction):
            yield one
