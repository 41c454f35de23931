"""The bodies of `descent.py` in Triton: launches, and what is allocated for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qconvert.kernels.gpu.descent_kernels import descend as descent_kernel
from qconvert.kernels.gpu.feedback_kernels import feed_back as feedback_kernel
from qconvert.kernels.gpu.launch import Bounds, Launch

Floats = NDArray[np.float32]

ROWS = 32  # of a program: its one warp, a thread a row
BLOCK = 8  # columns in registers; what a kernel takes to compile grows with its square
PARTS = {0: 2, 1: 2, 2: 2, 3: 2, 4: 3}  # moves of a group, codes the first, by kind
SHARED = (2, 3)  # kinds whose groups share scales


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
        bounds=Bounds(registers=128, shared=0),
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


def descent_launch(
    cols: int, size: int, kind: int, levels: tuple[float, float, int],
    limits: tuple[float, float], low_bits: int, parts: int,
) -> Launch:  # fmt: skip
    """`levels`: low, high, and the steps of a search in a table of them, 0 of whole numbers."""
    floats = (
        "g", "h", "turned", "middles", "table", "chosen", "scale", "offset", "d", "dmin",
        "change", "log",
    )  # fmt: skip
    return Launch(
        descent_kernel,
        {**dict.fromkeys(floats, "*fp32"), "rows": "i32", "sweeps": "i32"},
        {
            "KIND": kind,
            **dict(zip(("LOW", "HIGH", "STEPS"), levels, strict=True)),
            "LOW_BITS": low_bits,
            "LIMIT_LOW": limits[0],
            "LIMIT_HIGH": limits[1],
            "COLS": cols,
            "SIZE": size,
            "PARTS": parts,
            "BLOCK": _block(size),
            "ROWS": ROWS,
        },
        warps=1,
        bounds=Bounds(registers=160, shared=0),
    )


def descend(
    gradient: Tensor, moments: Tensor, size: int, kind: int,
    low: np.float32, high: np.float32, middles: Floats, gaps: Floats,
    limit_low: np.float32, limit_high: np.float32, low_bits: int,
    chosen: Tensor, scale: Tensor, offset: Tensor, d: Tensor, dmin: Tensor,
    change: Tensor, sweeps: int, parameters: bool,
) -> None:  # fmt: skip
    """Change `chosen`, `scale`, `offset`, `d` and `dmin` in place; fill `change`."""
    cols, rows = gradient.shape
    parts = PARTS[kind] if parameters else 1
    events = (parts + (parameters and kind in SHARED)) * cols
    if events * rows >= 1 << 31:  # the kernel counts places of the log in 32 bits
        raise ValueError(f"a panel of {cols} columns and {rows} rows is too large for one descent")
    log = gradient.new_empty(events, rows)
    launch = descent_launch(
        cols, size, kind, (float(low), float(high), len(middles).bit_length()),
        (float(limit_low), float(limit_high)), low_bits, parts,
    )  # fmt: skip
    state = (one if len(one) else chosen for one in (scale, offset, d, dmin))
    launch(
        (-(-rows // ROWS),),
        *(gradient.clone(), moments, moments.t().contiguous()),
        *_table(float(low), tuple(middles.tolist()), tuple(gaps.tolist()), gradient.device),
        *(chosen, *state, change, log, rows, sweeps),
    )


def _block(count: int) -> int:
    """Columns of a tile: the largest power of two that divides all there are."""
    return min(count & -count, BLOCK)


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
    "descend_symmetric": lambda: descent_launch(256, 128, 0, (-8.0, 7.0, 0), (0.0, 0.0), -16, 2),
    "descend_zero_point": lambda: descent_launch(256, 128, 4, (0.0, 15.0, 0), (0.0, 15.0), 0, 3),
    "descend_super_table": lambda: descent_launch(
        256, 32, 2, (-127.0, 113.0, 4), (-32.0, 31.0), 0, 2
    ),
    "descend_super_affine": lambda: descent_launch(256, 32, 3, (0.0, 15.0, 0), (0.0, 63.0), 0, 2),
}
