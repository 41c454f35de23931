"""Codes to values and back on tensors: the same bits as the grids' own, which work on arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qconvert.formats.gguf.grids import GRIDS, GGUFGrid
from qconvert.formats.integer import IntegerGrid
from qconvert.formats.nearest import nearest_codes, on_lines
from qconvert.kernels import lines
from qconvert.kernels.bodies import Body
from qconvert.kernels.searches import (
    Table,
)

INTEGERS = [
    IntegerGrid(4, 128, True, "bfloat16"), IntegerGrid(4, 64, False, "portable"),
    IntegerGrid(8, 0, True, "float32"), IntegerGrid(3, 32, False, "float16"),
]  # fmt: skip


def _weights(rows: int, cols: int) -> np.ndarray:
    x = np.random.default_rng(5).standard_t(4, (rows, cols)).astype(np.float32) * np.float32(0.05)
    x[0] = 0
    x[1, 10] = 300
    return x


@pytest.mark.parametrize("body", ["plain", "cpu"])
@pytest.mark.parametrize("grid", [*GRIDS.values(), *INTEGERS], ids=lambda grid: grid.name)
def test_as_the_grid_computes_them(grid: GGUFGrid | IntegerGrid, body: Body) -> None:
    x = _weights(5, 512)
    tensor = grid.quantize(x)
    wanted = grid.lines(tensor)
    params = {name: torch.from_numpy(values) for name, values in tensor.params.items()}
    scale, offset = lines.lines_of(grid.search, params, body=body)
    assert torch.equal(scale, torch.from_numpy(wanted.scale))
    assert (offset is None) == (wanted.offset is None)
    if offset is not None and wanted.offset is not None:
        assert torch.equal(offset, torch.from_numpy(wanted.offset))
    codes, levels = torch.from_numpy(tensor.codes), grid.levels
    values = lines.decoded(codes, scale, offset, levels, body=body)
    assert values.numpy().tobytes() == on_lines(tensor.codes, wanted, levels).tobytes()
    assert values.numpy().tobytes() == grid.decode(tensor).tobytes()
    again = lines.nearest_codes(torch.from_numpy(x), scale, offset, levels, body=body)
    assert np.array_equal(again.numpy(), nearest_codes(x, wanted, levels))


@pytest.mark.parametrize("body", ["plain", "cpu"])
def test_ties_and_what_lies_outside(body: Body) -> None:
    w = torch.tensor([[-9.0, -1.5, 0.5, 1.5, 2.5, 99.0]])
    one = torch.ones(1, 1)
    found = lines.nearest_codes(w, one, None, np.arange(-2, 4, dtype=np.float32), body=body)
    assert found.tolist() == [[0, 0, 2, 4, 4, 5]]  # levels -2, -2, 0, 2, 2, 3
    table = torch.tensor([-3.0, 0.0, 1.0, 3.0])
    assert lines.nearest_codes(w, one, None, table, body=body).tolist() == [[0, 0, 1, 2, 3, 3]]
    assert lines.nearest_codes(w, one * 0, None, table, body=body).tolist() == [[1] * 6]


def test_a_table_of_its_own_is_refused() -> None:
    search = Table(16, np.array([-3, 0, 1], np.float32), (("d", 16),))
    with pytest.raises(TypeError, match="only its grid"):
        lines.lines_of(search, {"d": torch.ones(1, 1)})


def test_rows_in_parts_are_the_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qconvert.kernels.cpu.lines.AT_ONCE", 100)
    w, scale, levels = torch.randn(7, 32), torch.rand(7, 2), np.arange(-8, 8, dtype=np.float32)
    codes = lines.nearest_codes(w, scale, None, levels, body="cpu")
    assert torch.equal(codes, lines.nearest_codes(w, scale, None, levels, body="plain"))
    values = lines.decoded(codes, scale, None, levels, body="cpu")
    assert torch.equal(values, lines.decoded(codes, scale, None, levels, body="plain"))
    assert lines.decoded(codes[:0], scale[:0], None, levels, body="cpu").shape == (0, 32)
