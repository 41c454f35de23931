"""The bodies of `descent.py` in Triton: launches, and what is allocated for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qconvert.kernels.gpu.feedback_kernels import feed_back as feedback_kernel
from qconvert.kernels.gpu.launch import Bounds, Launch

Floats = NDArray[np.float32]

ROWS = 32  # of a program: its one warp, a thread a row
BLOCK = 16  # columns in registers


def feedback_launch(
    cols: int, size: int, low: float, high: float, steps: int, *, shifted: bool
) -> Launch:
    floats = ("w", "factor", "scale", "offset", "middles", "table")
    return Launch(
        feedback_kernel,
        {**dict.fromkeys(floats, "*fp32"), "codes": "*u8", "errors": "*fp32", "rows": "i32"},
        {
            "COLS": cols,
            "SIZE": size,
            "SHIFTED": shifted,
            "LOW": low,
            "HIGH": high,
            "STEPS": steps,
            "BLOCK": BLOCK,
            "ROWS": ROWS,
        },
        warps=1,
        bounds=Bounds(registers=168, shared=0),
    )


def feed_back(
    w: Tensor, factor: Tensor, size: int, scale: Tensor, offset: Tensor, shifted: bool,
    low: np.float32, high: np.float32, middles: Floats, gaps: Floats,
    codes: Tensor, errors: Tensor,
) -> None:  # fmt: skip
    """Fill `codes` and `errors`, both [cols, rows]."""
    cols, rows = w.shape
    steps = len(middles).bit_length()
    known = _table(float(low), tuple(middles.tolist()), tuple(gaps.tolist()), w.device)
    launch = feedback_launch(cols, size, float(low), float(high), steps, shifted=shifted)
    launch(
        (-(-rows // ROWS),),
        *(w, factor, scale, offset if shifted else scale, *known, codes, errors, rows),
    )


@lru_cache(maxsize=64)
def _table(
    low: float, middles: tuple[float, ...], gaps: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Middles [2^steps - 1], those not used infinite, and levels [2^steps], summed as the other
    bodies sum them."""
    steps = len(middles).bit_length()
    filled = np.full((1 << steps) - 1 or 1, np.inf, np.float32)
    filled[: len(middles)] = middles
    levels = np.zeros(1 << steps, np.float32)
    levels[: len(gaps) + 1] = np.cumsum(np.array([low, *gaps], np.float32), dtype=np.float32)
    return torch.from_numpy(filled).to(device), torch.from_numpy(levels).to(device)


VARIANTS: Mapping[str, Callable[[], Launch]] = {
    "feed_back_256": lambda: feedback_launch(256, 1, 0.0, 15.0, 0, shifted=True),
    "feed_back_table": lambda: feedback_launch(128, 32, -127.0, 113.0, 4, shifted=False),
}
