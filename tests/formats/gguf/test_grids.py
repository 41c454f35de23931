"""Every grid: the reference decoder reads the same floats, the round trip is exact."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qconvert.formats.gguf.grids import GRIDS, GGUFGrid, ScaleOverflow
from qconvert.formats.tensor import QuantizedTensor

every_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)


def _normal(rows: int, cols: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    return rng.standard_normal((rows, cols)).astype(np.float32) * np.float32(0.1)


def _reference(grid: GGUFGrid, packed: np.ndarray) -> np.ndarray:
    return gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[grid.name])


def _equal(a: QuantizedTensor, b: QuantizedTensor) -> bool:
    same = a.params.keys() == b.params.keys() and np.array_equal(a.codes, b.codes)
    return same and all(
        a.params[name].dtype == b.params[name].dtype
        and a.params[name].tobytes() == b.params[name].tobytes()
        for name in a.params
    )


@every_grid
def test_sizes_are_those_of_the_format(grid: GGUFGrid) -> None:
    sizes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[grid.name]]
    assert (grid.block, grid.block_bytes) == sizes


@every_grid
def test_reference_decoder_reads_the_same_floats(grid: GGUFGrid) -> None:
    tensor = grid.quantize(_normal(40, 512))
    ours = grid.decode(tensor)
    assert ours.dtype == np.float32
    assert ours.tobytes() == _reference(grid, grid.pack(tensor)).astype(np.float32).tobytes()


@every_grid
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_bytes_unpack_and_pack_back(grid: GGUFGrid, data: st.DataObject) -> None:
    """Random blocks, not only those that a fit makes: all codes, all sub-scales, both signs."""
    seed = data.draw(st.integers(0, 2**32 - 1))
    rows = data.draw(st.integers(1, 5))
    cols = grid.block * data.draw(st.integers(1, 4))
    rng = np.random.default_rng(seed)
    packed = rng.integers(0, 256, (rows, grid.row_bytes(cols)), dtype=np.uint8)
    tensor = grid.unpack(packed, cols)
    assert grid.pack(tensor).tobytes() == packed.tobytes()
    assert _equal(grid.unpack(grid.pack(tensor), cols), tensor)
    with np.errstate(all="ignore"):
        ours, theirs = grid.decode(tensor), _reference(grid, packed)
    finite = np.isfinite(theirs)
    assert ours[finite].tobytes() == theirs[finite].astype(np.float32).tobytes()


@every_grid
def test_every_code_is_in_use(grid: GGUFGrid) -> None:
    codes = np.unique(grid.quantize(_normal(400, 512)).codes)
    count = {"Q2_K": 4, "Q3_K": 8, "Q6_K": 64, "Q8_0": 256}.get(
        grid.name, 16 * (1 + ("5" in grid.name))
    )
    assert len(codes) == count


@every_grid
def test_rows_can_be_taken_after_quantizing(grid: GGUFGrid) -> None:
    w = _normal(24, 256)
    order = np.random.default_rng(0).permutation(24)
    assert _equal(grid.quantize(w).take_rows(order), grid.quantize(w[order]))


@every_grid
def test_importance_moves_the_error_to_unimportant_columns(grid: GGUFGrid) -> None:
    w = _normal(64, 512)
    weight = np.where(np.arange(512) % 8 == 0, np.float32(100), np.float32(1)).astype(np.float32)

    def error(importance: np.ndarray | None) -> float:
        decoded = grid.decode(grid.quantize(w, importance))
        return float((weight * (w - decoded) ** 2).sum())

    assert error(weight) < 0.99 * error(None)


@pytest.mark.parametrize(
    "grid", [GRIDS["Q4_0"], GRIDS["Q4_K"], GRIDS["Q6_K"]], ids=lambda g: g.name
)
def test_weights_beyond_the_scale_are_refused(grid: GGUFGrid) -> None:
    w = _normal(4, 256)
    w[0, 0] = 1e9
    with pytest.raises(ScaleOverflow):
        grid.quantize(w)


def test_a_block_worked_by_hand() -> None:
    """Q4_0: the largest element -8 * d; element j in the low nibble, j + 16 in the high one."""
    w = np.zeros((1, 32), np.float32)
    w[0, 0], w[0, 16], w[0, 1] = -8.0, 7.0, 3.0
    packed = GRIDS["Q4_0"].pack(GRIDS["Q4_0"].quantize(w))
    nibbles = [0xF0, 0x8B] + [0x88] * 14
    assert packed.tobytes() == bytes([0x00, 0x3C, *nibbles])
