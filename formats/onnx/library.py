"""Whether the package `onnx` is there, and new enough for what is written."""

from __future__ import annotations

import importlib.metadata
import re

from qconvert.formats.refusal import Reason

OLDEST = (1, 16)
"""The first release with 4-bit types."""


def library_problems() -> list[Reason]:
    """Why no graph can be written here; empty when one can."""
    wanted = ".".join(map(str, OLDEST))
    remedy = f"pip install 'onnx>={wanted}'"
    try:
        version = importlib.metadata.version("onnx")
    except importlib.metadata.PackageNotFoundError:
        return [Reason("the package onnx is not installed: it writes the graph", remedy)]
    if tuple(int(one) for one in re.findall(r"\d+", version)[:2]) < OLDEST:
        return [Reason(f"the package onnx is {version}; 4-bit types came with {wanted}", remedy)]
    return []
