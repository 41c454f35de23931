"""Given the same importance, what our fits leave is less than what ggml's own quantizers leave."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest

from qconvert.formats.gguf.grids import GRIDS, GGUFGrid

# Largest error relative to ggml's, with every column alike and with importance: about 1 % above
# what benchmarks/fit.py prints on these and on real weights.
LIMITS = {
    "Q8_0": (0.91, 0.86), "Q4_0": (0.93, 0.99), "Q4_1": (0.81, 0.99), "Q5_0": (0.93, 0.99),
    "Q5_1": (0.80, 0.98), "Q2_K": (0.77, 0.93), "Q3_K": (0.92, 0.98), "Q4_K": (0.96, 0.96),
    "Q5_K": (0.93, 0.92), "Q6_K": (0.91, 0.91), "IQ4_NL": (0.95, 0.95), "IQ4_XS": (0.95, 0.95),
}  # fmt: skip


def _weights(kind: str) -> np.ndarray:
    rng = np.random.default_rng(11)
    if kind == "normal":
        return rng.standard_normal((128, 1024)).astype(np.float32) * np.float32(0.03)
    return rng.standard_t(5, (128, 1024)).astype(np.float32) * np.float32(0.02)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["normal", "heavy tails"])
def test_error_is_below_ggmls(ggml: Any, grid: GGUFGrid, weighted: bool, kind: str) -> None:
    w = _weights(kind)
    spread = np.exp(np.random.default_rng(5).standard_normal(w.shape[1])).astype(np.float32)
    importance = spread if weighted else None
    theirs = gguf.quants.dequantize(
        ggml.quantize(grid.name, w, importance), gguf.GGMLQuantizationType[grid.name]
    )
    ours = grid.decode(grid.quantize(w, importance))
    weight = spread if weighted else np.float32(1)
    errors = [float((weight * (w - values) ** 2).sum()) for values in (ours, theirs)]
    assert errors[0] <= LIMITS[grid.name][weighted] * errors[1]
