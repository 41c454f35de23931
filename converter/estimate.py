"""What a conversion will cost, told before a weight is read."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qconvert.formats.grid import Grid
from qconvert.formats.target import OutputTensor, Plan

CHUNK = 1 << 22
"""Weights that are read and quantized at once."""

INTERPRETER = 220_000_000
"""Bytes of Python with numpy, numba and a loaded kernel, measured."""
MEMORY = 1e10
"""Bytes per second that are read from memory, of a usual machine."""
_PER_WEIGHT = 14  # stored form, float32, codes and the kernel's own, in a chunk at hand
_PER_WHOLE_WEIGHT = 3  # codes, reordered codes and packed bytes of a tensor that is kept whole
_FLOATS_PER_WEIGHT = 13  # the same, of a tensor that stays float
_DISK = 1e9  # bytes per second, read and written; a slow disk takes longer


@dataclass(frozen=True, slots=True)
class Calibrating:
    """What is to be calibrated on, and what that takes besides the output."""

    origin: str  # "default", "self", or the name of a file or folder
    rows: int
    length: int  # tokens in each row
    held_rows: int  # of `rows`
    chat: bool
    compute: str  # type of the products inside a block: "bfloat16"
    device: str
    device_bytes: int  # of a CUDA device; 0 on the processor
    waits: bool  # what is not at work leaves the device for memory of the processor
    work: Path  # the work folder
    work_bytes: int  # that its finished parts take
    states_bytes: int  # that hidden states take there besides, until the output is written
    notes: tuple[str, ...] = ()  # on the text, one line each


@dataclass(frozen=True, slots=True)
class Estimate:
    """Costs of a conversion, predicted."""

    peak_bytes: int
    disk_bytes: int  # of the output
    seconds: float
    calibrating: Calibrating | None = None  # None: no step looks at data


def estimate(plan: Plan, threads: int, fitted: Iterable[OutputTensor] | None = None) -> Estimate:
    """Peak memory from the sizes, time from a trial of each grid on random weights (the first use
    of a kernel compiles it, so the trial itself takes a moment). `fitted`: the tensors whose codes
    are still to be made; all, unless it is given."""
    seconds = seconds_of(plan, plan.tensors if fitted is None else fitted, threads)
    return Estimate(peak_of(plan), plan.nbytes, seconds)


def chunk_rows(cols: int, together: int = 1) -> int:
    """Rows of `cols` weights that are handled at once: a multiple of `together`."""
    return max(1, CHUNK // max(1, cols * together)) * together


def peak_of(plan: Plan) -> int:
    """Bytes of memory while tensors are fitted and written, a chunk at a time."""
    whole = bool(plan.details.get("gathers"))
    return INTERPRETER + max((_working_bytes(tensor, whole) for tensor in plan.tensors), default=0)


def _working_bytes(tensor: OutputTensor, gathered: bool) -> int:
    """`gathered`: the writer packs a quantized tensor when it has all of it."""
    weights = math.prod(tensor.shape)
    chunk = min(weights, max([CHUNK, *tensor.shape[-1:]])) * _PER_WEIGHT
    if tensor.row_order is None and not (gathered and tensor.grid is not None):
        return chunk
    return chunk + weights * (_FLOATS_PER_WEIGHT if tensor.grid is None else _PER_WHOLE_WEIGHT)


def seconds_of(plan: Plan, fitted: Iterable[OutputTensor], threads: int) -> float:
    """To fit the tensors `fitted`, and to read and write all of `plan`."""
    grids: dict[str, Grid] = {}
    weights: Counter[str] = Counter()
    for tensor in fitted:
        if tensor.grid is not None:
            grids[tensor.dtype] = tensor.grid
            weights[tensor.dtype] += math.prod(tensor.shape)
    fitting = sum(
        count * seconds_per_weight(grids[name], threads) for name, count in weights.items()
    )
    moved = plan.nbytes + sum(tensor.source.nbytes for tensor in plan.tensors if tensor.source)
    return fitting + moved / _DISK


def bound_to(grid: Grid, largest: float) -> Grid:
    """A grid that fits, for a trial: one whose last scale is open is bound to `largest`."""
    bound = getattr(grid, "bound", None)  # `formats.grid.Bindable`
    found: Grid = grid if bound is None else bound(largest)
    return found


def seconds_per_weight(grid: Grid, threads: int) -> float:
    """Measured on random weights, the better of two runs after one that warms up."""
    shape = (128 * min(threads, 16), 2048)
    trial = np.random.default_rng(0).standard_normal(shape, np.float32) * np.float32(0.02)
    grid = bound_to(grid, float(np.abs(trial).max()))
    grid.quantize(trial[:1], threads=threads)
    best = math.inf
    for _ in range(2):
        start = time.perf_counter()
        grid.pack(grid.quantize(trial, threads=threads))
        best = min(best, time.perf_counter() - start)
    return best / trial.size
