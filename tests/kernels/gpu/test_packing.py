"""Blocks in Triton: the bytes, codes and floats of plain torch, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from qconvert.formats.gguf.grids import GRIDS, GGUFGrid
from qconvert.kernels import packing

pytest.importorskip("triton")
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "compiled.py"
OTHER_BLOCKS = """
from functools import partial
import torch
from qconvert.formats.gguf.grids import GRIDS
from qconvert.kernels.gpu import packing

REST = [name for name in GRIDS if name not in packing.EXAMPLES]
VARIANTS = {
    **{name: partial(packing.dequantizing, GRIDS[name].layout, torch.float16) for name in REST},
    **{f"pack {name}": partial(packing.packing, GRIDS[name].layout) for name in ("Q8_0", "Q3_K")},
}
"""

every_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
# The smallest; a part of a program; blocks of 32 columns in more than one program, the last short.
SHAPES = [(1, 1), (3, 11), (5, 27)]
FLOATS = [
    *((shape, torch.float32) for shape in SHAPES),
    ((3, 11), torch.float16), ((3, 11), torch.bfloat16),
]  # fmt: skip


def at_random(grid: GGUFGrid, rows: int, blocks: int, device: torch.device) -> torch.Tensor:
    """Any bytes; among the halves zero, the smallest and the largest number and no number."""
    rng = np.random.default_rng(blocks)
    packed = rng.integers(0, 256, (rows * blocks, grid.block_bytes), dtype=np.uint8)
    for at, _ in grid.layout.halves:
        halves = np.array([0x0000, 0x8000, 0x0001, 0x7BFF, 0x7C00, 0x7E00], "<u2").view(np.uint8)
        some = halves.reshape(-1, 2)[: len(packed)]
        packed[: len(some), at : at + 2] = some
    return torch.from_numpy(packed).reshape(rows, -1).to(device)


def same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Bit for bit, and NaN where NaN is."""
    bits = torch.int32 if found.dtype == torch.float32 else torch.int16
    numbers = [torch.where(one.isnan(), 0, one).view(bits) for one in (found, wanted)]
    return torch.equal(found.isnan(), wanted.isnan()) and torch.equal(*numbers)


@every_grid
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_codes_and_bytes(grid: GGUFGrid, shape: tuple[int, int], device: torch.device) -> None:
    packed, cols = at_random(grid, *shape, device), shape[1] * grid.block
    codes, params = packing.unpack(packed, grid.layout, cols, body="gpu")
    wanted, parts = packing.unpack(packed, grid.layout, cols, body="plain")
    assert torch.equal(codes, wanted)
    assert list(params) == list(parts)
    for name, values in parts.items():
        assert params[name].dtype == values.dtype
        assert torch.equal(params[name].view(torch.uint8), values.view(torch.uint8))
    assert torch.equal(packing.pack(codes, params, grid.layout, body="gpu"), packed)


@every_grid
@pytest.mark.parametrize(("shape", "dtype"), FLOATS, ids=str)
def test_floats(
    grid: GGUFGrid, shape: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> None:
    if dtype == torch.bfloat16 and device.type == "cpu":
        pytest.skip("the interpreter does not round to bfloat16 as a GPU does")
    packed, cols = at_random(grid, *shape, device), shape[1] * grid.block
    found = packing.dequantize(packed, grid.layout, cols, dtype, body="gpu")
    wanted = packing.dequantize(packed, grid.layout, cols, dtype, body="plain")
    assert found.dtype == dtype
    assert same(found, wanted)


def test_bytes_may_begin_anywhere_and_rows_lie_apart(device: torch.device) -> None:
    grid = GRIDS["Q6_K"]
    packed = at_random(grid, 4, 2, device)
    room = torch.zeros(packed.numel() + 1, dtype=torch.uint8, device=device)
    moved = room[1:].view_as(packed).copy_(packed)
    for some in (moved, moved[::2]):
        found = packing.dequantize(some, grid.layout, 512, body="gpu")
        assert same(found, packing.dequantize(some, grid.layout, 512, body="plain"))
        codes, params = packing.unpack(some, grid.layout, 512, body="gpu")
        apart = {name: values.t().contiguous().t() for name, values in params.items()}
        assert torch.equal(packing.pack(codes, apart, grid.layout, body="gpu"), some)


def test_of_no_rows_nothing(device: torch.device) -> None:
    layout = GRIDS["Q4_K"].layout
    packed = torch.empty((0, 144), dtype=torch.uint8, device=device)
    codes, params = packing.unpack(packed, layout, 256, body="gpu")
    assert codes.shape == (0, 256)
    assert packing.pack(codes, params, layout, body="gpu").shape == (0, 144)
    assert packing.dequantize(packed, layout, 256, body="gpu").shape == (0, 256)


def test_examples_are_layouts_of_the_format() -> None:
    from qconvert.kernels.gpu.packing import EXAMPLES

    assert EXAMPLES == {name: GRIDS[name].layout for name in EXAMPLES}


def test_numbers_in_unknown_pieces_are_refused() -> None:
    from dataclasses import replace

    from qconvert.kernels.gpu.packing import EXAMPLES, unpacking
    from qconvert.kernels.layouts import Numbers, Run

    odd = Numbers(("scales", "mins"), 8, 12, pieces=(Run(0, 12, 0, 0, 8),))
    layout = EXAMPLES["Q5_K"]
    parts = tuple(odd if isinstance(part, Numbers) else part for part in layout.parts)
    with pytest.raises(ValueError, match="no kernel for numbers in pieces"):
        unpacking(replace(layout, parts=parts))


def test_other_blocks_compile(tmp_path: Path) -> None:
    """Those that are not among `VARIANTS`: the interpreter takes what the compiler does not."""
    package = tmp_path / "blocks"
    package.mkdir()
    for name, text in (("__init__", ""), ("other", OTHER_BLOCKS)):
        (package / f"{name}.py").write_text(text, encoding="utf-8")
    given = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-P", str(SCRIPT), "--package", "blocks", "--arch", "90"],
        env={**given, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines, done.stderr
    assert {line["variant"]: line["faults"] for line in lines[:-1] if line["faults"]} == {}
    assert len(lines) > len(GRIDS) - 4
    assert all(line["store_bytes"] == 16 for line in lines[:-1] if "pack" not in line["variant"])
