"""How fast this machine calibrates: short trials of what a conversion will do much of.

Imports torch. Trials run as the engine does: each thread of a pool computes with one of its own.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from qconvert.algorithms.panels import ROWS
from qconvert.algorithms.slots import Setting
from qconvert.engine.pieces import Piece
from qconvert.engine.solve import solve
from qconvert.engine.stream import Workers, workers
from qconvert.estimate import bound_to, seconds_per_weight
from qconvert.formats.grid import Grid
from qconvert.formats.target import OutputTensor
from qconvert.recipe import Recipe

MOST = 2048  # channels of a product on trial; larger matrices are reckoned from it
WIDEST = 1024  # columns of a linear on trial
MOST_THREADS = 16
MANY = 4096  # rows of a linear on trial on a device, which takes all of them at once
TOKENS = 256  # that the moments of a trial are of
SEARCHED = 256  # rows of a linear that a transform tries its scales on (`algorithms.trial`)
TRIED = {"awq": 41, "osplus": 40}
"""Transforms that search -> how many candidates each input has."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Of all threads together, per second."""

    narrow: float  # operations of products in the compute type, casts included
    wide: float  # operations of products in float32
    moved: float  # bytes read or written by element-wise work


def measured(
    cols: int, rows: int, length: int, threads: int, device: torch.device, compute: torch.dtype
) -> Rates:
    """`length` tokens times a matrix [rows, cols], both at most MOST."""
    rows, cols = min(rows, MOST), min(cols, MOST)
    w = torch.zeros(rows, cols, device=device)
    x = torch.zeros(length, cols, device=device)
    y = torch.zeros(length, rows, device=device)
    narrow = compute != torch.float32

    def linear() -> None:
        with torch.inference_mode(), torch.autocast(device.type, compute, enabled=narrow):
            torch.nn.functional.linear(x, w)

    def product() -> None:
        x.t() @ y

    def passed() -> None:
        y * y

    operations = 2 * length * rows * cols
    with workers(min(threads, MOST_THREADS), device) as pool:
        return Rates(
            operations / _each(linear, pool, device),
            operations / _each(product, pool, device),
            8 * length * rows / _each(passed, pool, device),
        )


def _each(work: Callable[[], object], pool: Workers, device: torch.device) -> float:
    """Seconds of one call while every thread is at it; the best of three, after one to warm up."""
    calls = 8 * pool.count
    best = math.inf
    for _ in range(4):
        start = time.perf_counter()
        pool.map(lambda _: work(), range(calls))
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return best / calls


def seconds_to_solve(
    tensors: Iterable[OutputTensor], recipe: Recipe, setting: Setting, device: torch.device
) -> float:
    """All linears of `tensors` through fit and rounds, from trials of every grid at every width."""
    rows, count = Counter[tuple[str, int]](), Counter[tuple[str, int]]()
    grids: dict[str, Grid] = {}
    for tensor in tensors:
        if tensor.grid is not None and tensor.source is not None:
            key = (tensor.grid.name, tensor.source.shape[1])
            grids[tensor.grid.name] = tensor.grid
            rows[key] += tensor.source.shape[0]
            count[key] += 1
    total = 0.0
    with workers(setting.threads, device):
        for (name, cols), some in rows.items():
            once, each = _solving(grids[name], cols, recipe, setting, device)
            total += count[name, cols] * once + some * each
    return total


def rows_on_trial(threads: int, device: torch.device) -> int:
    """Of a linear: as many as keep all of the device at work, so that time grows with them."""
    part = ROWS.get(device.type)
    return MANY if part is None else part * min(threads, MOST_THREADS)


def _solving(
    grid: Grid, cols: int, recipe: Recipe, setting: Setting, device: torch.device
) -> tuple[float, float]:
    """Seconds for a linear of `cols` columns, whatever its rows, and for each of them."""
    unit = max(1, grid.block)
    width = cols if cols <= WIDEST or not grid.block else WIDEST // unit * unit or cols
    rows = rows_on_trial(setting.threads, device)
    chance = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS, width, generator=chance)
    second = x.t() @ x / len(x)
    second.diagonal().add_(0.1)
    second = second.to(device)
    w = 0.02 * torch.randn(2 * rows, width, generator=chance).to(device)
    grid = bound_to(grid, float(w.abs().max()))

    def timed(some: torch.Tensor) -> float:
        piece = Piece(np.arange(len(some)), second, second)
        start = time.perf_counter()
        solve("a trial", "", some, [piece], grid, recipe, setting)
        _wait(device)
        return time.perf_counter() - start

    timed(w[:1])  # compiles
    few = min(timed(w[:rows]), timed(w[:rows]))
    many = max(timed(w), few)
    wider = cols / width
    return max(0.0, 2 * few - many) * wider**3, (many - few) / rows * wider**2


def seconds_to_search(
    tensors: Iterable[OutputTensor], recipe: Recipe, setting: Setting, rates: Rates
) -> float:
    """Trials of scales by the transforms that search for one; roughly."""
    tried = sum(TRIED.get(name, 0) for name in recipe.transforms)
    if not tried:
        return 0.0
    fitting: dict[str, float] = {}
    total = 0.0
    for tensor in tensors:
        if tensor.grid is not None and tensor.source is not None:
            rows, cols = tensor.source.shape
            rows = min(rows, SEARCHED * max(1, setting.effort))
            name = tensor.grid.name
            if name not in fitting:
                fitting[name] = seconds_per_weight(tensor.grid, setting.threads)
            total += rows * cols * (fitting[name] + 2 * cols / rates.wide * setting.threads)
    return tried * total


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
