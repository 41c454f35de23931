"""ModelOpt's own rules against the bytes that nvidia-modelopt 0.47.0 wrote: no byte differs."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from qconvert.formats.grid import Grid, Lines
from qconvert.formats.minifloat import BindableGrid, MiniFloatGrid
from qconvert.formats.tensor import QuantizedTensor
from qconvert.formats.trtllm.grids import CAST, GRIDS, TABLE
from qconvert.formats.trtllm.signed import Signed
from qconvert.kernels.minifloat import E4M3

DATA = Path(__file__).parent.parent.parent / "data" / "modelopt"
ROWS = 64  # of q, in integers.safetensors


@lru_cache(maxsize=1)
def _all() -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for file in ("excerpt", "integers")
        for name, tensor in load_file(DATA / f"{file}.safetensors").items()
    }


def source(name: str) -> np.ndarray:
    return _all()[f"source/{name}_proj.weight"].float().numpy()


def theirs(config: str, name: str, part: str) -> np.ndarray:
    found = _all()[f"{config}/{name}_proj.{part}"]
    return (found.view(torch.uint8) if found.dtype == torch.float8_e4m3fn else found).numpy()


def fitted(grid: Grid, name: str, *shares: str) -> QuantizedTensor:
    if isinstance(grid, BindableGrid):
        grid = grid.bound(max(float(np.abs(source(one)).max()) for one in shares))
    return grid.quantize(source(name))


def bits(grid: Grid, codes: np.ndarray) -> np.ndarray:
    assert isinstance(grid, MiniFloatGrid)
    return grid.element.bits(codes)


@pytest.mark.parametrize(
    ("grid", "config", "name", "step"),
    [
        ("modelopt_fp8_tensor_bf16", "FP8_DEFAULT_CFG", "k", 128),
        ("modelopt_fp8_channel", "FP8_PER_CHANNEL_PER_TOKEN_CFG", "q", 1),
        ("modelopt_fp8_block128", "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG", "q", 128),
    ],
)
def test_fp8(grid: str, config: str, name: str, step: int) -> None:
    ours = fitted(GRIDS[grid], name, name)
    written = theirs(config, name, "weight")
    assert np.array_equal(bits(GRIDS[grid], ours.codes), written)
    scale = theirs(config, name, "weight_scale")
    assert ours.params["d"][::step].tobytes() == scale.tobytes()


def test_nvfp4_shares_the_scale_of_q_k_and_v() -> None:
    grid, config = GRIDS["modelopt_nvfp4"], "NVFP4_DEFAULT_CFG"
    for name in ("q", "k", "v"):
        ours = fitted(grid, name, "q", "k", "v")
        packed = theirs(config, name, "weight")
        nibbles = np.stack([packed & 15, packed >> 4], -1).reshape(ours.shape)
        assert np.array_equal(bits(grid, ours.codes), nibbles)
        assert (nibbles == 8).any()
        assert np.array_equal(ours.params["scale"], theirs(config, name, "weight_scale"))
        whole = ours.params["amax"][0, 0] / np.float32(6 * 448)
        assert whole.tobytes() == theirs(config, name, "weight_scale_2").tobytes()


def test_int4_of_groups() -> None:
    config = "INT4_BLOCKWISE_WEIGHT_ONLY_CFG"
    ours = GRIDS["modelopt_int4_g128"].quantize(source("q")[:ROWS])
    packed = theirs(config, "q", "weight")
    nibbles = np.stack([packed & 15, packed >> 4], 1).reshape(ours.shape)
    assert np.array_equal((ours.codes - np.uint8(8)) & 15, nibbles)
    assert ours.params["d"].tobytes() == theirs(config, "q", "weight_scale").tobytes()
    assert ours.codes.min() == 1  # the lowest level is never used


def test_int8_of_rows() -> None:
    config = "INT8_WEIGHT_ONLY_CFG"
    ours = GRIDS["modelopt_int8_channel"].quantize(source("q")[:ROWS])
    assert np.array_equal((ours.codes - np.uint8(128)).view(np.int8), theirs(config, "q", "weight"))
    assert ours.params["d"].tobytes() == theirs(config, "q", "weight_scale").tobytes()


@pytest.mark.parametrize("name", [name for name in GRIDS if "int" in name])
def test_a_group_of_zeros_has_a_scale_of_one(name: str) -> None:
    w = np.zeros((2, 256), np.float32)
    w[1, :] = np.linspace(-3, 1, 256)
    ours = GRIDS[name].quantize(w)
    assert (ours.params["d"][0] == 1).all()
    assert (GRIDS[name].decode(ours)[0] == 0).all()


@pytest.mark.parametrize("name", list(GRIDS))
def test_what_is_packed_is_unpacked_and_decoded(name: str) -> None:
    """Every float type of a grid of one scale as well; the first rows do not depend on others."""
    grid: Grid = GRIDS[name]
    w = source("q")
    if isinstance(grid, BindableGrid):
        grid = grid.bound(float(np.abs(w).max()))
    ours = grid.quantize(w)
    again = grid.unpack(grid.pack(ours), w.shape[1])
    assert np.array_equal(again.codes, ours.codes)
    assert all(np.array_equal(again.params[key], ours.params[key]) for key in ours.params)
    assert grid.row_bytes(w.shape[1]) == grid.pack(ours).shape[1]
    error = np.linalg.norm(grid.decode(ours) - w) / np.linalg.norm(w)
    assert error < {4: 0.15, 8: 0.04}[4 if "int4" in name or "fp4" in name else 8]
    first = grid.quantize(w[:128], threads=2)
    assert np.array_equal(first.codes, ours.codes[:128])
    scale = grid.lines(ours).scale
    placed = grid.place(w, Lines(scale, None))
    assert np.abs(grid.decode(placed) - w).sum() <= np.abs(grid.decode(ours) - w).sum() * 1.01


@pytest.mark.parametrize("element", [CAST, TABLE, Signed(E4M3, "BF16")])
def test_both_zeros_have_a_code(element: Signed) -> None:
    codes = np.arange(2 * element.kind.magnitudes, dtype=np.uint8)
    assert np.array_equal(element.codes(element.bits(codes)), codes)
    assert len(np.unique(element.bits(codes))) == len(codes)
    levels = element.levels
    assert (np.diff(levels) >= 0).all()
    assert np.array_equal(np.signbit(levels), element.bits(codes) >= element.sign)
    assert np.array_equal(element.rounded(levels)[levels != 0], codes[levels != 0])
    tiny = np.array([-1e-9, 1e-9, 0.0], np.float32)
    assert element.bits(element.rounded(tiny)).tolist() == [element.sign, 0, 0]
    minus = element.bits(element.rounded(np.array([-0.0], np.float32)))
    assert minus[0] == (element.sign if element.negative_zero else 0)
    with pytest.raises(ValueError, match="not a finite number"):
        CAST.codes(np.array([0x7F], np.uint8))


def test_e4m3_is_that_of_torch() -> None:
    """Casts of torch, ties and small numbers among them, directly and by way of bfloat16."""
    values = np.random.default_rng(0).normal(0, 40, 4096).astype(np.float32)
    values = np.concatenate([values, values / 4096, (E4M3.levels[1:] + E4M3.levels[:-1]) / 2])
    values = np.clip(values, -448, 448).astype(np.float32)
    direct = torch.from_numpy(values).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    assert np.array_equal(CAST.bits(CAST.rounded(values)), direct)
    twice = Signed(E4M3, "BF16")
    through = torch.from_numpy(values).bfloat16().to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    assert np.array_equal(twice.bits(twice.rounded(values)), through)
    assert (direct != through).any()
