"""Scales and codes of min/max fits against the bytes that NVIDIA ModelOpt 0.47.0 wrote."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from qconvert.algorithms.fits.minmax import FIT as MINMAX
from qconvert.formats.minifloat import GRIDS, BindableGrid
from qconvert.formats.tensor import QuantizedTensor
from qconvert.kernels.minifloat import E2M1, E4M3

EXCERPT = Path(__file__).parent.parent / "data" / "modelopt" / "excerpt.safetensors"


@lru_cache(maxsize=1)
def _all() -> dict[str, torch.Tensor]:
    return load_file(EXCERPT)


def _source(name: str) -> np.ndarray:
    return _all()[f"source/{name}_proj.weight"].float().numpy()


def _theirs(config: str, name: str, part: str) -> np.ndarray:
    found = _all()[f"{config}/{name}_proj.{part}"]
    return (found.view(torch.uint8) if found.dtype == torch.float8_e4m3fn else found).numpy()


def _largest(*names: str) -> float:
    return max(float(np.abs(_source(name)).max()) for name in names)


def _fitted(grid_name: str, name: str, *shares: str) -> QuantizedTensor:
    grid = GRIDS[grid_name]
    if isinstance(grid, BindableGrid):
        grid = grid.bound(_largest(*shares))
    return MINMAX(grid, _source(name), None, 1)


def _without_minus_zero(bits: np.ndarray, minus_zero: int) -> np.ndarray:
    """They keep the sign of weights that round to zero, which stands for the same value."""
    return np.where(bits == minus_zero, 0, bits)


def test_fp8_channel() -> None:
    ours = _fitted("fp8_channel", "q")
    config = "FP8_PER_CHANNEL_PER_TOKEN_CFG"
    assert ours.params["d"][:, 0].tobytes() == _theirs(config, "q", "weight_scale").tobytes()
    bits = _without_minus_zero(_theirs(config, "q", "weight"), 0x80)
    assert np.array_equal(E4M3.bits(ours.codes), bits)


def test_fp8_block() -> None:
    ours = _fitted("fp8_block128", "q")
    config = "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG"
    scale = _theirs(config, "q", "weight_scale")
    assert scale.shape == (2, 1, 2, 1)
    assert ours.params["d"][::128].tobytes() == scale.tobytes()
    bits = _without_minus_zero(_theirs(config, "q", "weight"), 0x80)
    assert np.array_equal(E4M3.bits(ours.codes), bits)


def test_fp8_tensor() -> None:
    """The scale is equal. Their quotient is rounded to bfloat16 before it is rounded to e4m3, and
    so lands on ties: with that step our rounding gives their bytes, without it 2 to 3 % differ, and
    each of those is nearer to the weight."""
    ours = _fitted("fp8_tensor", "k", "k")
    scale = _theirs("FP8_DEFAULT_CFG", "k", "weight_scale")
    assert ours.params["d"][0].tobytes() == scale.tobytes()
    theirs = _without_minus_zero(_theirs("FP8_DEFAULT_CFG", "k", "weight"), 0x80)
    w = _source("k")
    twice = torch.from_numpy(w / scale).bfloat16().float().numpy()
    assert np.array_equal(E4M3.bits(E4M3.rounded(twice)), theirs)
    values = E4M3.levels[E4M3.codes(theirs)] * scale
    other = E4M3.bits(ours.codes) != theirs
    assert 0.02 < other.mean() < 0.03
    mine = GRIDS["fp8_tensor"].decode(ours)
    assert (np.abs(mine - w)[other] < np.abs(values - w)[other] * 1.0001).all()


def test_nvfp4() -> None:
    """The global scale is that of q, k and v together."""
    for name in ("q", "k", "v"):
        ours = _fitted("nvfp4", name, "q", "k", "v")
        stored = ours.params["amax"][0, 0] / np.float32(6 * 448)
        config = "NVFP4_DEFAULT_CFG"
        assert stored.tobytes() == _theirs(config, name, "weight_scale_2").tobytes()
        assert np.array_equal(ours.params["scale"], _theirs(config, name, "weight_scale"))
        packed = _theirs(config, name, "weight")
        nibbles = np.stack([packed & 15, packed >> 4], -1).reshape(ours.codes.shape)
        assert np.array_equal(E2M1.bits(ours.codes), _without_minus_zero(nibbles, 8))
