"""The fits in Triton: exactly the codes and parameters of the plain body."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from qconvert.formats.gguf.grids import GRIDS
from qconvert.formats.integer import IntegerGrid
from qconvert.kernels.fit import fit
from qconvert.kernels.searches import (
    Symmetric,
)

SEED = 11


def _matrix(rows: int, cols: int) -> torch.Tensor:
    """Weights with a zero group, a constant one, one-sided ones, tiny values, an outlier, values
    whose scales float16 cannot hold, and zeros of both signs."""
    x = torch.randn(rows, cols, generator=torch.Generator().manual_seed(SEED))
    x = x * x.abs() * 0.05
    x[0, :32] = 0
    x[1] = 0.25
    x[2] = x[2].abs()
    x[3] = -x[3].abs()
    x[4] *= 1e-6
    x[5] *= 1e-30
    x[6, 10] = 300.0
    x[7] *= 1e8
    x[8, ::2] = 0.0
    x[8, 1::2] = -0.0
    return x


def _importance(cols: int) -> torch.Tensor:
    return torch.randn(cols, generator=torch.Generator().manual_seed(SEED)).exp()


def _equal(search: Any, x: torch.Tensor, weight: torch.Tensor | None, device: torch.device) -> None:
    codes, params = fit(x, weight, search, body="plain")
    found, values = fit(
        x.to(device), None if weight is None else weight.to(device), search, body="gpu"
    )
    assert found.dtype == torch.uint8
    assert found.device.type == device.type
    assert torch.equal(found.cpu(), codes)
    assert set(values) == set(params)
    for name, one in params.items():  # the sign of a zero scale aside
        assert torch.equal(values[name].cpu(), one), name


GROUPS = [
    GRIDS["Q5_0"].search, GRIDS["Q4_1"].search, GRIDS["IQ4_NL"].search,
    replace(IntegerGrid(4, 20, True, "bfloat16").search, size=20),  # type: ignore[type-var]
    IntegerGrid(2, 16, False, "portable").search,
]  # fmt: skip


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("search", GROUPS, ids=lambda search: f"{search.kernel}-{search.size}")
def test_groups(
    search: Any, weighted: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if weighted:  # as where there are enough groups to fill a GPU
        monkeypatch.setattr("qconvert.kernels.gpu.fit.FEW", 1)
    cols = 2 * search.size
    _equal(search, _matrix(9, cols), _importance(cols) if weighted else None, device)


@pytest.mark.parametrize(
    ("name", "weighted", "refits"),
    [("Q3_K", True, 2), ("IQ4_XS", False, 1), ("Q2_K", False, 1), ("Q4_K", True, 2)],
)
def test_super_blocks(name: str, weighted: bool, refits: int, device: torch.device) -> None:
    search = replace(GRIDS[name].search, refits=refits)  # type: ignore[type-var]
    _equal(search, _matrix(9, 256), _importance(256) if weighted else None, device)


def test_more_rows_and_groups_than_one_program(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = Symmetric(16, -8, 7, (-8.0, 7.0, -9.0), rounds=2, scale="float32")
    x = _matrix(133, 48)
    _equal(search, x, None, device)
    monkeypatch.setattr("qconvert.kernels.gpu.fit.FEW", 1)
    _equal(search, x, None, device)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("cols", [1, 37])
def test_whole_rows(bits: int, cols: int, device: torch.device) -> None:
    for symmetric in (True, False):
        search = replace(IntegerGrid(bits, 0, symmetric, "float16").search, size=cols)  # type: ignore[type-var]
        _equal(search, torch.cat([_matrix(9, 37)[:1, :cols], _matrix(9, 37)[6:, :cols]]), None,
               device)  # fmt: skip


def test_other_types_and_no_rows(device: torch.device) -> None:
    x, search = _matrix(9, 32)[:3].bfloat16(), GRIDS["Q4_0"].search
    _equal(search, x, None, device)
    codes, params = fit(x[:0].to(device), None, search, body="gpu")
    assert codes.shape == (0, 32)
    assert params["d"].shape == (0, 1)
