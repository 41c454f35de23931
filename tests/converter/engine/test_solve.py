"""One linear on every grid: what looks at more of the moments leaves less error."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qconvert.algorithms.slots import Setting
from qconvert.engine.pieces import Piece
from qconvert.engine.solve import Solved, solve
from qconvert.formats.gguf.grids import GRIDS
from qconvert.formats.grid import Grid
from qconvert.formats.integer import IntegerGrid
from qconvert.recipe import parse

ROWS, COLS, RANK, TOKENS = 96, 512, 96, 4096
INTEGERS = [
    IntegerGrid(bits, group, symmetric, scale)
    for bits, group, symmetric, scale in [
        (2, 64, False, "float16"), (3, 128, True, "float16"), (3, 0, False, "float32"),
        (4, 32, True, "bfloat16"), (4, 128, True, "float16"), (4, 128, False, "float16"),
        (4, 0, True, "float16"), (8, 0, True, "float16"), (8, 128, False, "float32"),
    ]
]  # fmt: skip
ALL: list[Grid] = [*GRIDS.values(), *INTEGERS]
every_grid = pytest.mark.parametrize("grid", ALL, ids=lambda grid: grid.name)

GPTQ, BEST, BEST_OF_ROWS = 0.4, 0.95, 0.995
"""`gptq` leaves at most this share of the error of nearest codes, and `best` this of `gptq`'s: it
has little to move where a whole row has one scale."""


def moments(seed: int) -> torch.Tensor:
    """Of inputs that move together, as those of real models do: a few directions, loud channels."""
    rng = np.random.default_rng(1)
    directions = rng.standard_normal((RANK, COLS), np.float32)
    loud = np.exp(rng.standard_normal(COLS)).astype(np.float32)
    drawn = np.random.default_rng(seed)
    x = drawn.standard_normal((TOKENS, RANK), np.float32) @ directions / RANK**0.5
    x = (x + 0.4 * drawn.standard_normal((TOKENS, COLS), np.float32)) * loud
    return torch.from_numpy(x.T @ x / TOKENS)


def weights() -> torch.Tensor:
    drawn = np.random.default_rng(5).standard_t(5, (ROWS, COLS)).astype(np.float32)
    return torch.from_numpy(drawn * np.float32(0.03))


@pytest.fixture(scope="module")
def piece() -> Piece:
    return Piece(np.arange(ROWS), moments(2), moments(3))


def solved(piece: Piece, grid: Grid, method: str, threads: int = 1) -> Solved:
    setting = Setting(threads=threads)
    return solve("name", "role", weights(), [piece], grid, parse(method), setting)


def error(piece: Piece, found: Solved) -> float:
    """By definition, of the values that the file stands for."""
    off = (weights() - found.values).double()
    whole = weights().double()
    held = piece.held.double()
    return float(((off @ held) * off).sum() / ((whole @ held) * whole).sum())


@every_grid
def test_each_method_beats_the_simpler_one(piece: Piece, grid: Grid) -> None:
    nearest, gptq, best = (solved(piece, grid, name) for name in ("nearest", "gptq", "best"))
    told = [error(piece, one) for one in (nearest, gptq, best)]
    assert told[1] < GPTQ * told[0]
    assert told[2] < (BEST if grid.block else BEST_OF_ROWS) * told[1]
    assert nearest.record.plain_error == pytest.approx(told[0], rel=1e-3)
    for found, value in zip((nearest, gptq, best), told, strict=True):
        assert found.record.error == pytest.approx(value, rel=1e-3)
        assert found.record.plain_error == pytest.approx(told[0], rel=1e-3)
        values = grid.decode(grid.unpack(grid.pack(found.tensor), COLS))
        np.testing.assert_array_equal(values, found.values.numpy())


@every_grid
def test_codes_do_not_depend_on_threads(piece: Piece, grid: Grid) -> None:
    one, two = (solved(piece, grid, "best", threads) for threads in (1, 2))
    np.testing.assert_array_equal(one.tensor.codes, two.tensor.codes)
    for name, values in one.tensor.params.items():
        np.testing.assert_array_equal(values, two.tensor.params[name])


def test_rows_go_where_their_piece_says(piece: Piece) -> None:
    """Rows of a joined q, k, v are solved by pieces, and come back in their own order."""
    grid = GRIDS["Q4_K"]
    odd = [Piece(piece.rows[start::2], piece.fit, piece.held) for start in (1, 0)]
    recipe = parse("nearest+weighted")
    found = solve("name", "role", weights(), odd, grid, recipe, Setting())
    whole = solved(piece, grid, "nearest")
    np.testing.assert_array_equal(found.tensor.codes, whole.tensor.codes)
    assert torch.equal(found.values, whole.values)
