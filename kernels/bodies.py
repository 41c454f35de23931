"""Which body of an operation computes: every operation has one signature and three bodies.

`plain` (torch) is the truth and runs on every device; `cpu` (numba, or torch where its own product
is the fast one) is for a processor; `gpu` (Triton) for a CUDA device. A caller hands arrays over
and gets the body of the device they are on. Nothing imports Triton before a body `gpu` runs.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

Body = Literal["plain", "cpu", "gpu"]
OLDEST = (8, 0)
"""Compute capability from which the Triton bodies are proved to compile and to keep their bounds.
On 7.5 those of int8 do not compile, and others spill kilobytes."""


def body_for(device: torch.device, asked: Body | None = None) -> Body:
    """`asked`, or the fastest that runs on `device`: on a GPU older than `OLDEST`, or without
    Triton, the plain one."""
    if asked is not None:
        return asked
    if device.type == "cpu":
        return "cpu"
    if device.type != "cuda" or not has_triton():
        return "plain"
    import torch

    return "gpu" if torch.cuda.get_device_capability(device) >= OLDEST else "plain"


@cache
def has_triton() -> bool:
    """Whether the package is there; it is not imported."""
    return importlib.util.find_spec("triton") is not None


def module(body: Body, operation: str) -> Any:
    """`qconvert.kernels.BODY.OPERATION`, imported when first asked for."""
    return importlib.import_module(f"qconvert.kernels.{body}.{operation}")
