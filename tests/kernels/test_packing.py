"""Blocks in the bodies of a processor: one set of bytes, floats as an independent reader has them.

`gguf.quants` is that reader; `tests/formats/gguf/test_grids.py` holds the grids themselves to it.
"""

from __future__ import annotations

from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch

from qconvert.formats.gguf.grids import GRIDS, GGUFGrid
from qconvert.kernels import packing
from qconvert.kernels.bodies import Body
from qconvert.kernels.layouts import Codes, Half, Plane

every_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
bodies = pytest.mark.parametrize("body", ["plain", "cpu"])


def packed_at_random(grid: GGUFGrid, rows: int, blocks: int) -> np.ndarray:
    """Any bytes: all codes, all sub-scales, halves that are infinite or no number as well."""
    rng = np.random.default_rng(rows)
    return rng.integers(0, 256, (rows, blocks * grid.block_bytes), dtype=np.uint8)


def of_numbers(grid: GGUFGrid, rows: int, blocks: int) -> np.ndarray:
    """The same with finite halves: 0x7C00 are the bits of the exponent."""
    packed = packed_at_random(grid, rows, blocks).reshape(-1, grid.block_bytes)
    for at, _ in grid.layout.halves:
        packed[:, at + 1] &= 0xBF
    return packed.reshape(rows, -1)


@every_grid
@bodies
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (0, 2)], ids=str)
def test_bytes_go_out_and_come_back(grid: GGUFGrid, body: Body, shape: tuple[int, int]) -> None:
    layout, (rows, blocks) = grid.layout, shape
    packed, cols = torch.from_numpy(packed_at_random(grid, rows, blocks)), blocks * grid.block
    codes, params = packing.unpack(packed, layout, cols, body=body)
    assert codes.shape == (rows, cols)
    assert list(params) == list(grid.parameters.stored)
    assert torch.equal(packing.pack(codes, params, layout, body=body), packed)
    assert int(codes.sum()) == 0 or int(codes.max()) < len(layout.levels)
    if rows:
        tensor = grid.unpack(packed.numpy(), cols)
        assert np.array_equal(codes.numpy(), tensor.codes)
        for name, values in tensor.params.items():
            assert params[name].numpy().dtype == values.dtype
            assert params[name].numpy().tobytes() == values.tobytes()


@every_grid
@bodies
def test_the_reference_reads_the_same_floats(grid: GGUFGrid, body: Body) -> None:
    packed, cols = of_numbers(grid, 4, 3), 3 * grid.block
    wanted = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[grid.name])
    found = packing.dequantize(torch.from_numpy(packed), grid.layout, cols, body=body)
    assert found.dtype == torch.float32
    assert found.numpy().tobytes() == wanted.astype(np.float32).tobytes()
    assert found.numpy().tobytes() == grid.decode(grid.unpack(packed, cols)).tobytes()


@every_grid
@bodies
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_shorter_floats_are_rounded_once(grid: GGUFGrid, body: Body, dtype: torch.dtype) -> None:
    packed, cols = torch.from_numpy(of_numbers(grid, 2, 3)), 3 * grid.block
    exact = packing.dequantize(packed, grid.layout, cols, body="plain")
    found = packing.dequantize(packed, grid.layout, cols, dtype, body=body)
    assert found.dtype == dtype
    assert torch.equal(found.view(torch.int16), exact.to(dtype).view(torch.int16))


@every_grid
def test_arrays_and_tensors_are_packed_alike(grid: GGUFGrid) -> None:
    packed, cols = of_numbers(grid, 3, 4), 4 * grid.block
    arrays = packing.unpack(packed, grid.layout, cols)
    for body in ("cpu", "plain"):
        codes, params = packing.unpack(packed, grid.layout, cols, body=body)
        assert isinstance(codes, np.ndarray)
        assert np.array_equal(codes, arrays[0])
        assert packing.pack(codes, params, grid.layout, body=body).tobytes() == packed.tobytes()
    plain = packing.dequantize(packed, grid.layout, cols, body="plain")
    assert packing.dequantize(packed, grid.layout, cols).tobytes() == plain.tobytes()


@bodies
def test_rows_may_lie_apart(body: Body) -> None:
    grid = GRIDS["Q5_K"]
    packed = torch.from_numpy(of_numbers(grid, 6, 2))
    codes, params = packing.unpack(packed[::2], grid.layout, 512, body=body)
    assert torch.equal(codes, packing.unpack(packed, grid.layout, 512, body=body)[0][::2])
    everyother = {name: values[::2] for name, values in params.items()}
    again = packing.pack(codes[::2], everyother, grid.layout, body=body)
    assert torch.equal(again, packed[::4])


@every_grid
def test_every_bit_of_a_block_has_one_meaning(grid: GGUFGrid) -> None:
    """A plane, a half or a run of numbers, no other; and every bit of a number has one place."""
    used = np.zeros((grid.block_bytes, 8), int)
    for at, part in grid.layout.placed:
        if isinstance(part, Half | Codes):
            used[at : at + part.nbytes] += 1
            continue
        bits = np.zeros((part.total, 8), int)
        for run in part.runs:
            some = slice(run.lift, run.lift + run.width)
            used[at + run.at : at + run.at + run.count, some] += 1
            some = slice(run.shift, run.shift + run.width)
            bits[run.first : run.first + run.count, some] += 1
        widths = {tuple(number) for number in bits}
        assert len(widths) == 1
        assert bits.max() == 1
    assert (used == 1).all()
    assert sum(part.plane.width for _, part in grid.layout.codes) == np.log2(len(grid.levels))


def test_what_does_not_fit_is_refused() -> None:
    layout = GRIDS["Q4_K"].layout
    packed = torch.zeros((2, 144), dtype=torch.uint8)
    codes, params = packing.unpack(packed, layout, 256)
    with pytest.raises(ValueError, match="whole blocks of 256"):
        packing.unpack(packed, layout, 128)
    with pytest.raises(ValueError, match="144 bytes a row, not 288"):
        packing.dequantize(packed, layout, 512)
    with pytest.raises(ValueError, match="mins: uint8"):
        packing.pack(codes, {**params, "mins": params["mins"][:, :4]}, layout)
    with pytest.raises(ValueError, match="d: float32"):
        packing.pack(codes, {**params, "d": params["d"].float()}, layout)


def test_levels_are_a_table_only_where_they_must_be() -> None:
    layouts = {name: grid.layout for name, grid in GRIDS.items()}
    assert {name for name, layout in layouts.items() if layout.is_table} == {"IQ4_NL", "IQ4_XS"}
    moved = replace(layouts["Q8_0"], levels=tuple(range(5, 5 + 256)))
    packed = torch.from_numpy(of_numbers(GRIDS["Q8_0"], 1, 1))
    d = packing.unpack(packed, moved, 32)[1]["d"].float()
    codes = packing.unpack(packed, moved, 32)[0]
    assert torch.equal(packing.dequantize(packed, moved, 32), d * (codes.float() + 5))


def test_a_plane_of_numbers_lists_its_runs() -> None:
    numbers = GRIDS["IQ4_XS"].layout.numbers
    assert numbers is not None
    high = [run for run in numbers[1].runs if run.width == 2]
    assert [(run.first, run.at, run.lift, run.shift) for run in high[3:6]] == [
        (3, 0, 6, 4), (4, 1, 0, 4), (5, 1, 2, 4),
    ]  # fmt: skip
    assert Plane(2, 128).stride == 32
