"""Every grid: the reference decoder reads the same floats, the round trip is exact."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qconvert.formats.gguf.grids import GRIDS, GGUFGrid, ScaleOverflow
from qconvert.formats.grid import Lines
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


def _on_lines(grid: GGUFGrid, tensor: QuantizedTensor) -> np.ndarray:
    """scale * level + offset, written out."""
    lines = grid.lines(tensor)
    rows, cols = tensor.shape
    values = grid.levels[tensor.codes].reshape(rows, cols // grid.group, grid.group)
    values = values * lines.scale[..., None]
    return (values if lines.offset is None else values + lines.offset[..., None]).reshape(rows, -1)


@every_grid
@pytest.mark.parametrize("made", ["fitted", "any bytes"])
def test_lines_are_what_decoding_uses(grid: GGUFGrid, made: str) -> None:
    tensor = grid.quantize(_normal(40, 512))
    if made == "any bytes":
        rng = np.random.default_rng(4)
        packed = rng.integers(0, 256, (40, grid.row_bytes(512)), dtype=np.uint8)
        tensor = grid.unpack(packed, 512)
    with np.errstate(all="ignore"):
        decoded, ours = grid.decode(tensor), _on_lines(grid, tensor)
        offset = grid.lines(tensor).offset
    finite = np.isfinite(decoded)
    assert decoded[finite].tobytes() == ours[finite].tobytes()
    assert grid.block % grid.group == 0
    assert (offset is not None) == grid.has_offset
    assert (np.diff(grid.levels) > 0).all()
    assert tensor.codes.max() < len(grid.levels)


@every_grid
def test_what_was_fitted_is_placed_where_it_is(grid: GGUFGrid) -> None:
    """Every bit of the parameters that matters is found again, and every code."""
    w = _normal(40, 512)
    w[3, :64], w[4], w[5] = 0, np.abs(w[4]), w[5] * np.float32(1e-3)
    tensor = grid.quantize(w)
    again = grid.place(w, grid.lines(tensor))
    ours, theirs = grid.lines(again), grid.lines(tensor)
    assert np.array_equal(ours.scale, theirs.scale)
    assert theirs.offset is None or np.array_equal(ours.offset, theirs.offset)
    assert np.array_equal(grid.decode(again), grid.decode(tensor))


@every_grid
def test_wanted_lines_are_placed_as_near_as_the_file_can(grid: GGUFGrid) -> None:
    """Against the obvious rounding: the largest of a super-block on the largest whole number."""
    rng = np.random.default_rng(8)
    w = _normal(64, 512)
    groups = (64, 512 // grid.group)
    scale = np.exp(rng.standard_normal(groups) / 3).astype(np.float32) / 100
    offset = -np.exp(rng.standard_normal(groups) / 3).astype(np.float32) / 10
    found = grid.lines(grid.place(w, Lines(scale, offset if grid.has_offset else None)))

    def obvious(wanted: np.ndarray, most: int) -> np.ndarray:
        v = wanted.reshape(64, -1, grid.block // grid.group)
        d = (v.max(-1, keepdims=True) / most).astype(np.float16).astype(np.float32)
        whole = np.rint(v / d) if v.shape[-1] > 1 else most
        return (d * whole).reshape(wanted.shape)

    most = {"Q2_K": 15, "Q3_K": 31, "IQ4_XS": 31, "Q6_K": 127}.get(grid.name, 63)
    most = most if grid.block == 256 else 1
    factor = {"Q2_K": 0.88}.get(grid.name, 0.75) if grid.block == 256 else 1
    pairs = [(found.scale, scale)]
    if found.offset is not None:
        pairs.append((-found.offset, -offset))
    for ours, wanted in pairs:
        left = np.square(ours - wanted).sum()
        assert left <= factor * np.square(obvious(wanted, most) - wanted).sum()


@pytest.mark.parametrize("name", ["Q2_K", "Q4_K", "Q5_K"])
def test_an_offset_above_zero_becomes_zero_and_the_upper_end_stays(name: str) -> None:
    grid = GRIDS[name]
    w = np.random.default_rng(2).uniform(1, 2, (4, 256)).astype(np.float32)
    top = grid.levels[-1]
    groups = (4, 256 // grid.group)
    lines = Lines(np.full(groups, 1 / top, np.float32), np.full(groups, 1, np.float32))
    found = grid.lines(grid.place(w, lines))
    assert found.offset is not None
    assert not found.offset.any()
    assert np.allclose(found.scale * top, 2, rtol=1e-3)


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q4_K", "Q6_K"])
def test_lines_beyond_the_scale_are_refused(name: str) -> None:
    grid = GRIDS[name]
    far = np.full((1, 256 // grid.group), 1e9, np.float32)
    with pytest.raises(ScaleOverflow):
        grid.place(_normal(1, 256), Lines(far, -far if grid.has_offset else None))


def test_placing_does_not_depend_on_threads() -> None:
    w = _normal(700, 512)
    for grid in (GRIDS["Q4_K"], GRIDS["IQ4_NL"]):
        lines = grid.lines(grid.quantize(w))
        assert _equal(grid.place(w, lines, threads=1), grid.place(w, lines, threads=3))
