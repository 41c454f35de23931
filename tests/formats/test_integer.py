"""Integer grids: what their parameters stand for, their search, and that nothing is lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qconvert.formats.grid import Lines, ScaleOverflow
from qconvert.formats.integer import GRIDS as USUAL
from qconvert.formats.integer import IntegerGrid
from qconvert.formats.tensor import QuantizedTensor
from qconvert.kernels.scales import SHORTENED, stored

GRIDS = [
    IntegerGrid(bits, group, symmetric, scale)
    for bits, group, symmetric, scale in [
        (2, 32, True, "float16"), (2, 64, False, "float16"), (3, 128, False, "float32"),
        (4, 32, True, "float32"), (4, 128, True, "float16"), (4, 128, False, "bfloat16"),
        (4, 0, False, "float16"), (5, 64, False, "float16"), (6, 0, True, "float32"),
        (7, 32, False, "float32"), (8, 0, True, "bfloat16"), (8, 128, False, "float32"),
        (4, 128, True, "portable"), (4, 32, False, "portable"), (8, 0, True, "portable"),
        (4, 32, True, "portable5"),
    ]
]  # fmt: skip
every_grid = pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)


def _matrix(rows: int = 24, cols: int = 384, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    w = rng.standard_t(5, (rows, cols)).astype(np.float32) * np.float32(0.03)
    w[0] = 0
    w[1, :32] = 0.25
    w[2] = np.abs(w[2])
    w[3] = -np.abs(w[3])
    w[4] *= np.float32(1e-3)
    w[5, 7] = 9
    return w


def _equal(a: QuantizedTensor, b: QuantizedTensor) -> bool:
    same = a.params.keys() == b.params.keys() and np.array_equal(a.codes, b.codes)
    return same and all(
        a.params[name].dtype == b.params[name].dtype
        and a.params[name].tobytes() == b.params[name].tobytes()
        for name in a.params
    )


def test_names_and_sizes() -> None:
    assert [grid.name for grid in GRIDS[:7]] == [
        "int2_g32", "int2_g64_asym", "int3_g128_asym_f32", "int4_g32_f32",
        "int4_g128", "int4_g128_asym_bf16", "int4_channel_asym",
    ]  # fmt: skip
    assert len({grid.name for grid in GRIDS}) == len(GRIDS)
    assert all(USUAL[grid.name] == grid for grid in GRIDS)
    assert IntegerGrid(4, 128).bits_per_weight == 4 + 16 / 128
    assert IntegerGrid(4, 32, symmetric=False, scale="float32").bits_per_weight == 4 + 36 / 32
    assert IntegerGrid(8, 0).bits_per_weight == 8
    assert IntegerGrid(4, 128).levels.tolist() == list(range(-8, 8))
    assert IntegerGrid(3, 0, symmetric=False).levels.tolist() == list(range(8))


@pytest.mark.parametrize(
    "fields", [(1, 32, True, "float16"), (9, 32), (4, -1), (4, 32, True, "float8")]
)
def test_grids_that_there_are_not(fields: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="no such grid"):
        IntegerGrid(*fields)


@every_grid
def test_decoding_is_scale_times_code_minus_zero_in_any_order(grid: IntegerGrid) -> None:
    """Exactly: as real numbers, as float32 in the runtimes' order, and by the grid's lines."""
    tensor = grid.quantize(_matrix())
    rows, cols = tensor.shape
    decoded = grid.decode(tensor)
    assert decoded.dtype == np.float32
    scale = np.repeat(tensor.params["d"], grid.group or cols, 1)
    whole = 1 << (grid.bits - 1)
    zero = np.full((rows, cols), whole)
    if grid.has_offset:
        zero = np.repeat(tensor.params["zero"], grid.group or cols, 1)
    steps = tensor.codes.astype(np.float64) - zero
    assert np.array_equal(decoded, scale.astype(np.float64) * steps)
    assert np.array_equal(decoded, scale.astype(np.float32) * steps.astype(np.float32))
    lines = grid.lines(tensor)
    values = grid.levels[tensor.codes].reshape(*lines.scale.shape, -1) * lines.scale[..., None]
    values = values if lines.offset is None else values + lines.offset[..., None]
    assert values.reshape(rows, cols).tobytes() == decoded.tobytes()


@every_grid
def test_bytes_hold_all_of_it(grid: IntegerGrid) -> None:
    tensor = grid.quantize(_matrix())
    packed = grid.pack(tensor)
    assert packed.dtype == np.uint8
    assert packed.shape == (24, grid.row_bytes(384))
    assert _equal(grid.unpack(packed, 384), tensor)


@every_grid
def test_what_was_fitted_is_placed_where_it_is(grid: IntegerGrid) -> None:
    w = _matrix()
    tensor = grid.quantize(w)
    again = grid.place(w, grid.lines(tensor), threads=2)
    for name, values in tensor.params.items():
        alive = tensor.params["d"] != 0
        assert np.array_equal(again.params[name][alive], values[alive])
    assert (
        np.square(w - grid.decode(again)).sum() <= 1.0001 * np.square(w - grid.decode(tensor)).sum()
    )


@pytest.mark.parametrize("low", [0.5, -1.5])
def test_a_line_beside_zero_is_stretched_to_it(low: float) -> None:
    """Whole zero points cannot start a line above zero: its far end stays, zero becomes an end."""
    grid = IntegerGrid(4, 32, symmetric=False, scale="float32")
    w = np.linspace(low, low + 1, 64, dtype=np.float32).reshape(2, 32)
    wanted = Lines(np.full((2, 1), 1 / 15, np.float32), np.full((2, 1), low, np.float32))
    tensor = grid.place(w, wanted)
    far = max(low + 1, -low)
    assert np.allclose(tensor.params["d"], far / 15, rtol=1e-4)
    assert (tensor.params["zero"] == (0 if low > 0 else 15)).all()
    assert np.abs(w - grid.decode(tensor)).max() <= 0.501 * far / 15


@every_grid
def test_every_code_is_in_use(grid: IntegerGrid) -> None:
    codes = grid.quantize(_matrix(200, 1024)[6:]).codes
    assert len(np.unique(codes)) == 1 << grid.bits


@every_grid
def test_importance_moves_the_error(grid: IntegerGrid) -> None:
    w = _matrix()[6:]
    weight = np.where(np.arange(384) % 8 == 0, np.float32(100), np.float32(1)).astype(np.float32)

    def error(importance: np.ndarray | None) -> float:
        return float((weight * (w - grid.decode(grid.quantize(w, importance))) ** 2).sum())

    assert error(weight) < 0.995 * error(None)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_search_is_near_an_exhaustive_one(bits: int, symmetric: bool) -> None:
    """Over scales (and all zero points) on a fine grid, as they are: no re-fit."""
    grid = IntegerGrid(bits, 32, symmetric, "float32")
    w = _matrix(48, 32, seed=3)[6:]
    half, top = 1 << (bits - 1), (1 << bits) - 1
    best = np.full(len(w), np.inf)
    reach = np.abs(w).max(1, keepdims=True)
    ranges = [(-half, half - 1)] if symmetric else [(-z, top - z) for z in range(top + 1)]
    for stretch in np.linspace(0.4, 1.1, 60 if bits == 8 else 300):
        for low, high in ranges[:: 4 if bits == 8 else 1]:
            for sign in (-1, 1) if symmetric else (1,):
                d = sign * stretch * reach / max(-low, high)
                error = np.square(w - d * np.clip(np.rint(w / d), low, high)).sum(1)
                best = np.minimum(best, error)
    ours = np.square(w - grid.decode(grid.quantize(w))).sum()
    assert ours < 1.03 * best.sum()


def test_bfloat16_is_rounded_as_torch_rounds() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal(10000).astype(np.float32) * np.float32(3)
    values[:100] = (np.arange(100) * 2 + 1 + 256) / 512  # halfway between two
    ours = stored(values, SHORTENED["bfloat16"])
    theirs = torch.from_numpy(values).to(torch.bfloat16).float().numpy()
    assert ours.tobytes() == theirs.tobytes()


def _exact_in_both(values: np.ndarray) -> bool:
    """Whether float16 and bfloat16 hold all of these float32, finite, to the bit."""
    kept = torch.from_numpy(np.ascontiguousarray(values, np.float32))
    both = (kept.to(kind).float() for kind in (torch.float16, torch.bfloat16))
    return bool(torch.isfinite(kept).all()) and all(torch.equal(kept, one) for one in both)


def test_portable_scales_are_exact_in_float16_and_in_bfloat16() -> None:
    """Every float16, what lies between two of them, and what lies beyond: nearest of what both
    types hold, which is kept as it is, or infinite; and never farther than the rounding twice."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    halves = np.unique(halves[np.isfinite(halves)])
    values = np.concatenate([halves, (halves[1:] + halves[:-1]) / 2, halves * np.float32(1.0001)])
    found = stored(values, SHORTENED["portable"])
    fits = np.isfinite(found)
    assert _exact_in_both(found[fits])
    assert stored(found[fits], SHORTENED["portable"]).tobytes() == found[fits].tobytes()
    assert np.abs(values[~fits]).min() > 65280
    assert np.abs(found[fits]).max() == 65280
    common = np.unique(found[fits])
    known = torch.from_numpy(halves)
    shared = halves[(known.to(torch.bfloat16).float() == known).numpy()]
    assert np.array_equal(common, np.unique(shared))
    step = np.spacing(np.maximum(np.abs(values[fits]), np.float32(2.0**-14)))
    assert (np.abs(found[fits] - values[fits]) <= step * np.float32(2**15 + 2**12)).all()


def test_scales_of_five_bits_are_the_nearest_there_are() -> None:
    """Of every float16 and what lies around it: five significant bits, or fewer where float16 holds
    no more; what is beyond becomes infinite."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    halves = np.unique(halves[np.isfinite(halves)])
    values = np.concatenate([halves, halves * np.float32(1.0001)])
    found = stored(values, SHORTENED["portable5"])
    fits = np.isfinite(found)
    assert _exact_in_both(found[fits])
    mantissa, _ = np.frexp(found[fits])
    assert np.array_equal(mantissa * 32, np.rint(mantissa * 32))
    assert np.abs(values[~fits]).min() >= 64512
    assert np.abs(found[fits]).max() == 63488
    some = np.unique(halves[np.array([np.frexp(one)[0] * 32 % 1 == 0 for one in halves])])
    assert np.array_equal(np.unique(found[fits]), some)
    step = np.float32(2.0**-4) * np.exp2(np.floor(np.log2(np.maximum(np.abs(values), 2.0**-24))))
    step = np.maximum(step, 2.0**-24)
    assert (np.abs(found - values)[fits] <= 0.51 * step[fits]).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_products_with_scales_of_five_bits_are_exact(bits: int, dtype: torch.dtype) -> None:
    """As a runtime makes them: scale and whole number in the narrow type, multiplied there; also
    with both signs turned, as MLC has them."""
    grid = IntegerGrid(bits, 32, True, "portable5")
    tensor = grid.quantize(_matrix(60, 384) * np.float32(30))
    scale = torch.from_numpy(np.repeat(tensor.params["d"].astype(np.float32), 32, 1)).to(dtype)
    steps = torch.from_numpy(tensor.codes.astype(np.float32) - 2 ** (bits - 1)).to(dtype)
    wanted = torch.from_numpy(grid.decode(tensor))
    assert torch.equal((scale * steps).float(), wanted)
    assert torch.equal((-scale * -steps).float(), wanted)
    assert np.unique(tensor.codes).size == 1 << bits


@settings(max_examples=40, deadline=None)
@given(
    bits=st.sampled_from([2, 4, 8]),
    group=st.sampled_from([0, 32]),
    symmetric=st.booleans(),
    exponent=st.integers(-20, 10),
    seed=st.integers(0, 999),
)
def test_a_fit_never_yields_a_scale_that_is_not_exact_in_both(
    bits: int, group: int, symmetric: bool, exponent: int, seed: int
) -> None:
    grid = IntegerGrid(bits, group, symmetric, "portable")
    w = np.random.default_rng(seed).standard_t(4, (20, 64)).astype(np.float32)
    w *= np.float32(2.0**exponent)
    tensor = grid.quantize(w)
    assert tensor.params["d"].dtype == np.float16
    assert _exact_in_both(tensor.params["d"])
    wanted = Lines(
        w[:, : 64 // (group or 64)], None if symmetric else -np.abs(w[:, : 64 // (group or 64)])
    )
    assert _exact_in_both(grid.place(w, wanted).params["d"])


@pytest.mark.parametrize("symmetric", [True, False])
def test_portable_costs_next_to_nothing(symmetric: bool) -> None:
    """Measured at 4 bits, group 128: 0.01 % more squared error."""
    w = _matrix(200, 1024)[6:]
    errors = [
        np.square(w - grid.decode(grid.quantize(w))).sum()
        for grid in (IntegerGrid(4, 128, symmetric, scale) for scale in ("float16", "portable"))
    ]
    assert errors[1] < 1.001 * errors[0]


def test_five_bits_cost_little() -> None:
    """Measured at 4 bits, group 32: 1.5 % more squared error."""
    w = _matrix(200, 1024)[6:]
    errors = [
        np.square(w - grid.decode(grid.quantize(w))).sum()
        for grid in (IntegerGrid(4, 32, True, scale) for scale in ("float16", "portable5"))
    ]
    assert errors[1] < 1.025 * errors[0]


@pytest.mark.parametrize("symmetric", [True, False])
def test_scales_that_cannot_be_stored_are_refused(symmetric: bool) -> None:
    w = np.full((4, 64), 1e9, np.float32)
    for scale in ("float16", "portable"):
        with pytest.raises(ScaleOverflow):
            IntegerGrid(4, 64, symmetric, scale).quantize(w)
    assert np.allclose(
        IntegerGrid(4, 64, symmetric, "bfloat16").decode(
            IntegerGrid(4, 64, symmetric, "bfloat16").quantize(w)
        ),
        w,
        rtol=0.01,
    )


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_shape_and_any_values(data: st.DataObject) -> None:
    """Whole rows of odd length, few rows, zeros, constants, outliers: finite, and within a step."""
    grid = data.draw(st.sampled_from(GRIDS))
    rows = data.draw(st.integers(1, 20))
    cols = (grid.group or 1) * data.draw(st.integers(1, 3 if grid.group else 70))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    size = data.draw(st.sampled_from([1e-6, 0.02, 1.0, 300.0]))
    w = (rng.standard_normal((rows, cols)) * size).astype(np.float32)
    kind = data.draw(st.sampled_from(["plain", "zeros", "constant", "outlier", "positive"]))
    w = {"plain": w, "zeros": w * 0, "constant": w * 0 - np.float32(size), "outlier": w,
         "positive": np.abs(w)}[kind]  # fmt: skip
    if kind == "outlier":
        w[0, 0] = 50 * size
    tensor = grid.quantize(w, threads=2)
    decoded = grid.decode(tensor)
    assert np.isfinite(decoded).all()
    assert np.square(w - decoded).sum() <= np.square(w).sum() * 1.001
    assert _equal(grid.unpack(grid.pack(tensor), cols), tensor)
    if kind == "constant" and grid.scale in ("float32", "bfloat16"):
        assert np.allclose(decoded, w, rtol=0.005)
