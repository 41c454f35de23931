"""Linears with correlated inputs, as the rounds get them."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch

from qconvert.algorithms.slots import Setting, Task
from qconvert.formats.gguf.grids import GRIDS
from qconvert.formats.integer import IntegerGrid
from qconvert.formats.minifloat import GRIDS as MINIFLOAT
from qconvert.formats.minifloat import BindableGrid

INTEGER = [
    *(IntegerGrid(bits, 128) for bits in range(2, 9)),
    *(IntegerGrid(bits, 64, symmetric=False, scale="bfloat16") for bits in range(2, 9)),
    *(IntegerGrid(bits, 0) for bits in range(2, 9)),
    *(IntegerGrid(bits, 0, symmetric=False, scale="float32") for bits in (2, 4, 8)),
    *(IntegerGrid(4, 128, symmetric=symmetric, scale="portable") for symmetric in (True, False)),
    IntegerGrid(4, 32, scale="portable5"),
]
FLOATS = [
    grid.bound(0.5) if isinstance(grid, BindableGrid) else grid for grid in MINIFLOAT.values()
]
"""Bound to more than the largest weight of any task here."""
ALL = [*GRIDS.values(), *INTEGER, *FLOATS]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for `grid`, and does not say which, gets every one."""
    marks = metafunc.definition.iter_markers("parametrize")
    chosen = any("grid" in str(mark.args[0]).split(",") for mark in marks)
    if "grid" in metafunc.fixturenames and not chosen:
        metafunc.parametrize("grid", ALL, ids=[grid.name for grid in ALL])


@lru_cache(maxsize=8)
def _inputs(cols: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Second moments of two samples of inputs with few strong directions, and uneven channels."""
    random = torch.Generator().manual_seed(seed)
    mix = torch.randn(cols // 4, cols, generator=random)
    gain = torch.rand(cols, generator=random) * 1.5 + 0.25

    def sample(tokens: int) -> torch.Tensor:
        strong = torch.randn(tokens, cols // 4, generator=random) @ mix / (cols // 4) ** 0.5
        x = (strong + 0.4 * torch.randn(tokens, cols, generator=random)) * gain
        return x.t() @ x / tokens

    return sample(4 * cols), sample(2 * cols)


@pytest.fixture(scope="session")
def correlated() -> Callable[..., Task]:
    """`correlated(grid, rows=24, cols=512, seed=0, **setting)`"""

    def build(grid: Any, rows: int = 24, cols: int = 512, seed: int = 0, **setting: Any) -> Task:
        random = np.random.default_rng(seed)
        w = torch.from_numpy(random.standard_t(5, (rows, cols)).astype(np.float32) * 0.02)
        second, held = _inputs(cols, seed)
        return Task("linear", w, second, held, grid, Setting(**setting))

    return build
