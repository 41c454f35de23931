"""Starts a worker in an interpreter where qconvert is not installed.

    PYTHON -P .../runtimes/bootstrap.py qconvert.runtimes.vllm_worker

makes `qconvert.runtimes`, `qconvert.formats` and `qconvert.kernels` importable from the folders
that this file lies beside, in a checkout and in an installation alike, and runs the module as a
program. It imports
nothing of ours and nothing but the standard library; the workers need numpy and their runtime.
"""

from __future__ import annotations

import importlib.util
import runpy
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path

ROOMS = ("runtimes", "formats", "kernels")


def make_importable(root: Path) -> None:
    """`qconvert` as a package that holds the folders ROOMS of `root` and nothing else, in place of
    one that is installed."""
    _package("qconvert", [])
    for room in ROOMS:
        _package(f"qconvert.{room}", [str(root / room)])


def _package(name: str, places: Sequence[str]) -> None:
    spec = ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = list(places)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)


def main(module: str) -> None:
    make_importable(Path(__file__).resolve().parent.parent)
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1])
