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


def body_for(device: torch.device, asked: Body | None = None) -> Body:
    """`asked`, or the fastest that runs on `device`: on a GPU without Triton, the plain one."""
    if asked is not None:
        return asked
    if device.type == "cpu":
        return "cpu"
    return "gpu" if device.type == "cuda" and has_triton() else "plain"


@cache
def has_triton() -> bool:
    """Whether the package is there; it is not imported."""
    return importlib.util.find_spec("triton") is not None


def module(body: Body, operation: str) -> Any:
    """`qconvert.kernels.BODY.OPERATION`, imported when first asked for."""
    return importlib.import_module(f"qconvert.kernels.{body}.{operation}")
