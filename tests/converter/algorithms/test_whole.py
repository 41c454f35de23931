"""Algorithms on rows that are no whole groups: as on rows filled up with what is always zero."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from qconvert.algorithms.blocks.learned import Learned
from qconvert.algorithms.curvature import damped, output_error
from qconvert.algorithms.place import decoded
from qconvert.algorithms.registry import fits
from qconvert.algorithms.rounds.descent import Descent
from qconvert.algorithms.rounds.gptq import Gptq
from qconvert.algorithms.slots import BlockTask, Setting, Task
from qconvert.algorithms.transforms.awq import _weight_magnitude
from qconvert.algorithms.trial import Linear, rounded
from qconvert.algorithms.whole import filled_columns, filled_moments, fitted
from qconvert.engine.pieces import Piece
from qconvert.engine.solve import Solved, solve
from qconvert.formats.integer import IntegerGrid
from qconvert.recipe import parse

RAGGED = [
    IntegerGrid(3, 40, True, "portable"), IntegerGrid(4, 48, False, "float16"),
    IntegerGrid(4, 1100, True, "float32"),
]  # fmt: skip
every_grid = pytest.mark.parametrize("grid", RAGGED, ids=lambda grid: grid.name)
ROWS, COLS = 24, 376


def _moments(seed: int) -> torch.Tensor:
    chance = np.random.default_rng(seed)
    x = chance.standard_normal((4 * COLS, 90)) @ np.random.default_rng(0).standard_normal(
        (90, COLS)
    )
    x += 4 * chance.standard_normal(x.shape)
    return torch.from_numpy((x.T @ x / len(x)).astype(np.float32))


def _weights() -> torch.Tensor:
    w = np.random.default_rng(3).standard_t(5, (ROWS, COLS)).astype(np.float32) * np.float32(0.02)
    return torch.from_numpy(w)


def _solved(grid: IntegerGrid, method: str) -> Solved:
    piece = Piece(np.arange(ROWS), _moments(1), _moments(2))
    return solve("name", "role", _weights(), [piece], grid, parse(method), Setting())


@every_grid
@pytest.mark.parametrize("name", ["weighted", "minmax", "mse", "hqq"])
def test_fits_give_what_the_grid_holds(grid: IntegerGrid, name: str) -> None:
    w = _weights().numpy()
    tensor = fitted(fits()[name], grid, w, None, 1)
    assert tensor.codes.shape == w.shape
    assert tensor.params["d"].shape[1] == -(-COLS // grid.group)
    placed = grid.place(w, grid.lines(tensor))
    assert np.mean(placed.codes == tensor.codes) > 0.999
    if grid.symmetric:  # zeros among them change the mean that hqq and the range that minmax takes
        at = COLS - COLS % grid.group
        last = fits()[name](IntegerGrid(grid.bits, 0, True, grid.scale), w[:, at:], None, 1)
        assert np.array_equal(last.codes, tensor.codes[:, at:])


@every_grid
def test_methods_are_ordered_and_the_file_holds_them(grid: IntegerGrid) -> None:
    found = {name: _solved(grid, name) for name in ("nearest", "gptq", "best")}
    errors = []
    for one in found.values():
        off = (_weights() - one.values).double()
        errors.append(float(((off @ _moments(2).double()) * off).sum()))
        again = grid.unpack(grid.pack(one.tensor), COLS)
        np.testing.assert_array_equal(grid.decode(again), one.values.numpy())
    assert errors[1] < 0.6 * errors[0]
    assert errors[2] < 0.999 * errors[1]


@every_grid
def test_feedback_is_that_of_the_literal_one(grid: IntegerGrid) -> None:
    """GPTQ a column at a time in float64 on the columns that there are, in the order of the engine,
    on the lines that it found."""
    w, second = _weights(), _moments(1)
    task = Task(
        "name", filled_columns(w, grid), filled_moments(second, grid),
        filled_moments(_moments(2), grid), grid, Setting(),
    )  # fmt: skip
    tensor = Gptq(dampings=(0.01,), ordered=False)(task, fits()["weighted"], None)
    lines, levels = grid.lines(tensor), grid.levels.astype(np.float64)
    group = np.arange(COLS) // grid.group
    scale = lines.scale.astype(np.float64)[:, group]
    offset = 0 * scale if lines.offset is None else lines.offset.astype(np.float64)[:, group]
    mean = 0.01 * float(second.diagonal().double().sum()) / task.w.shape[1]
    inverse = np.linalg.inv(second.double().numpy() + mean * np.eye(COLS))
    rest, codes = w.double().numpy().copy(), np.zeros((ROWS, COLS), np.uint8)
    for j in range(COLS):
        values = scale[:, j, None] * levels + offset[:, j, None]
        codes[:, j] = np.abs(rest[:, j, None] - values).argmin(1)
        row = inverse[j] / inverse[j, j]
        rest -= (rest[:, j] - values[np.arange(ROWS), codes[:, j]])[:, None] * row
        inverse -= np.outer(inverse[j], inverse[j]) / inverse[j, j]
    assert np.mean(codes == tensor.codes[:, :COLS]) > 0.98
    assert not grid.decode(tensor)[:, COLS:].any()


@every_grid
def test_what_is_lacking_is_never_moved(grid: IntegerGrid) -> None:
    w, second = filled_columns(_weights(), grid), filled_moments(_moments(1), grid)
    task = Task("name", w, second, filled_moments(_moments(2), grid), grid, Setting())
    start = Gptq()(task, fits()["weighted"], None)
    found = Descent()(task, fits()["weighted"], start)
    moments = damped(second, 0.01).float()
    before, after = (output_error(decoded(task, one), task, moments) for one in (start, found))
    assert after < before
    assert not grid.decode(found)[:, COLS:].any()


class _Quadratic:
    """An error that has its least at the weights, of any shape."""

    def __init__(self, w: torch.Tensor) -> None:
        self.w = w

    def mean(self, weights: Any, rows: Any) -> float:
        off = weights["one"] - self.w
        return float(((off @ _moments(1 + (0 in rows))) * off).sum())

    def slopes(self, weights: Any, rows: Any) -> Any:
        return {"one": 2 * (weights["one"] - self.w) @ _moments(1 + (0 in rows))}


@every_grid
def test_learned_rounding_keeps_the_shape_and_gains(grid: IntegerGrid) -> None:
    w = _weights()
    error = _Quadratic(w)
    task = BlockTask("block", {"one": w}, {"one": grid}, error, [1], [0], Setting())
    start = {"one": grid.quantize(w.numpy())}
    found = Learned(iterations=20)(task, start)["one"]
    assert found.codes.shape == (ROWS, COLS)
    values = [{"one": torch.from_numpy(grid.decode(one))} for one in (start["one"], found)]
    assert error.mean(values[1], [0]) < 0.9 * error.mean(values[0], [0])


@every_grid
def test_scales_are_tried_on_it(grid: IntegerGrid) -> None:
    linear = Linear(_weights(), grid, 1.0)
    second = _moments(1).diagonal().numpy()
    found = rounded(linear, np.ones(COLS, np.float32), second, 1)
    assert found is not None
    assert found.shape == (ROWS, COLS)
    w = np.abs(_weights().numpy())
    relative = np.concatenate(
        [part / part.max(1, keepdims=True) for part in np.split(w, _edges(grid), axis=1)], axis=1
    )
    assert np.allclose(_weight_magnitude([linear]), relative.mean(0), rtol=1e-5)


def _edges(grid: IntegerGrid) -> list[int]:
    return list(range(grid.group, COLS, grid.group))
