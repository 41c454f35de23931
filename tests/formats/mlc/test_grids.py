"""MLC's own rule against its definition, one weight at a time."""

from __future__ import annotations

import numpy as np
import pytest

from qconvert.formats.grid import ScaleOverflow
from qconvert.formats.known_grids import grid_named
from qconvert.formats.mlc.grids import GRIDS, AbsmaxGrid, bfloat16


def literally(row: np.ndarray, grid: AbsmaxGrid) -> tuple[list[int], list[float], list[float]]:
    """Codes, scales and decoded values of one row, by the definition; float16 after every step,
    bfloat16 only for what is stored."""
    half, middle = grid.dtype == "float16", 2 ** (grid.bits - 1) - 1
    kept = {"float16": lambda v: float(np.float16(v)),
            "bfloat16": lambda v: float(bfloat16(np.array([v], np.float32))[0]),
            "float32": lambda v: float(np.float32(v))}[grid.dtype]  # fmt: skip
    step = kept if half else (lambda v: float(np.float32(v)))
    codes, scales, values = [], [], []
    for start in range(0, len(row), grid.group):
        group = [kept(v) for v in row[start : start + grid.group]]
        scale = kept(max(abs(v) for v in group) / middle)
        scales.append(float(bfloat16(np.array([scale], np.float32))[0])
                      if grid.dtype == "float32" else scale)  # fmt: skip
        for v in group:
            code = round(step(step(v / scale) + middle)) if scale else 0
            codes.append(min(max(code, 0), 2 * middle))
            values.append(kept((codes[-1] - middle) * scales[-1]))
    return codes, scales, values


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("cols", [120, 97])
def test_rule_is_the_definition(name: str, cols: int) -> None:
    grid = GRIDS[name]
    w = np.random.RandomState(1).standard_normal((4, cols)).astype(np.float32)
    w[1, : grid.group] = 0
    found = grid.quantize(w)
    values = grid.decode(found)
    for row in range(4):
        codes, scales, decoded = literally(w[row], grid)
        assert found.codes[row].tolist() == codes
        assert found.params["d"][row].tolist() == scales
        assert values[row].tolist() == decoded
    assert (grid.unpack(grid.pack(found), cols).codes == found.codes).all()
    assert (grid.unpack(grid.pack(found), cols).params["d"] == found.params["d"]).all()
    assert grid.pack(found).shape[1] == grid.row_bytes(cols)
    assert grid_named(name) == grid


def test_placing_on_its_own_lines_changes_no_value() -> None:
    grid = AbsmaxGrid(4, 32, "float16")
    found = grid.quantize(np.random.RandomState(2).standard_normal((3, 80)).astype(np.float32))
    again = grid.place(grid.decode(found), grid.lines(found))
    np.testing.assert_array_equal(grid.decode(again), grid.decode(found))


def test_what_float16_cannot_hold_is_told() -> None:
    with pytest.raises(ScaleOverflow, match="float16"):
        AbsmaxGrid(4, 32, "float16").quantize(np.full((1, 32), 1e6, np.float32))
