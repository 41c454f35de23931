"""The searches beat rounding by the largest element, and come near an exhaustive search."""

from __future__ import annotations

import numpy as np
import pytest

from qconvert.formats.gguf.grids import GRIDS
from qconvert.kernels.levels import IQ4_LEVELS

ROWS = 48


def _case(weighted: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(21)
    w = rng.standard_t(6, (ROWS, 32)).astype(np.float32) * np.float32(0.05)
    weight = np.exp(rng.standard_normal(32)).astype(np.float32)
    return w, weight if weighted else np.ones(32, np.float32)


def _left(name: str, w: np.ndarray, weight: np.ndarray) -> float:
    grid = GRIDS[name]
    return float((weight * (w - grid.decode(grid.quantize(w, weight))) ** 2).sum())


def _levels(name: str) -> np.ndarray:
    ranges = {"Q4_0": (-8, 8), "Q5_0": (-16, 16), "Q8_0": (-128, 128)}
    return IQ4_LEVELS if name == "IQ4_NL" else np.arange(*ranges[name], dtype=np.float32)


def _rounded(w: np.ndarray, d: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Nearest level times d, by looking at all of them."""
    v = (w / d)[..., None]
    return d * levels[np.abs(v - levels).argmin(-1)]


@pytest.mark.parametrize("name", ["Q4_0", "Q5_0", "IQ4_NL"])
@pytest.mark.parametrize("weighted", [False, True])
def test_one_scale(name: str, weighted: bool) -> None:
    w, weight = _case(weighted)
    levels = _levels(name)
    largest = np.take_along_axis(w, np.abs(w).argmax(1)[:, None], 1)
    naive = (weight * (w - _rounded(w, largest / levels[0], levels)) ** 2).sum()
    best = np.full(ROWS, np.inf)
    for stretch in np.linspace(0.5, 1.25, 300):
        for sign in (1, -1):
            d = sign * stretch * largest / levels[0]
            error = (weight * (w - _rounded(w, d, levels)) ** 2).sum(1)
            best = np.minimum(best, error)
    ours = _left(name, w, weight)
    assert ours < 0.93 * naive
    assert ours < (1.08 if weighted else 1.03) * best.sum()


@pytest.mark.parametrize(("name", "top"), [("Q4_1", 15), ("Q5_1", 31)])
@pytest.mark.parametrize("weighted", [False, True])
def test_scale_and_offset(name: str, top: int, weighted: bool) -> None:
    w, weight = _case(weighted)
    low, high = w.min(1, keepdims=True), w.max(1, keepdims=True)

    def error(d: np.ndarray, m: np.ndarray) -> np.ndarray:
        q = np.clip(np.rint((w - m) / d), 0, top)
        return (weight * (w - (d * q + m)) ** 2).sum(1)

    step = (high - low) / top
    naive = error(step, low).sum()
    best = np.full(ROWS, np.inf)
    for stretch in np.linspace(0.6, 1.1, 60):
        for shift in np.linspace(-1, 3, 60):
            best = np.minimum(best, error(stretch * step, low + shift * step))
    ours = _left(name, w, weight)
    assert ours < 0.88 * naive
    assert ours < (1.12 if weighted else 1.06) * best.sum()
