"""Small floats: their values, their bits, and rounding as hardware and torch round."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qconvert.kernels.minifloat import E2M1, E4M3, MiniFloat, floor_power, powers


def _values(kind: MiniFloat) -> np.ndarray:
    """Of all sizes; every level, every tie between two, and the floats beside each tie."""
    random = np.random.default_rng(0)
    sizes = np.float32(2) ** np.arange(-14, 9).astype(np.float32)
    some = (random.standard_normal((2000, 1)).astype(np.float32) * sizes).ravel()
    ties = (kind.levels[1:] + kind.levels[:-1]) / 2
    far = np.float32(1e9)
    exact = (kind.levels, ties, np.nextafter(ties, far), np.nextafter(ties, -far))
    return np.concatenate([some, *exact])


def test_levels_are_all_finite_values() -> None:
    bits = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    assert np.array_equal(E4M3.levels, np.unique(bits[np.isfinite(bits)]))
    assert len(E4M3.levels) == 253
    assert E2M1.levels[7:].tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert np.array_equal(E2M1.levels, -E2M1.levels[::-1])


def test_e4m3_is_rounded_as_torch_rounds() -> None:
    """Bit for bit but for the sign of zero; torch makes NaN of what lies beyond, hardware the
    largest value."""
    values = _values(E4M3)
    theirs = torch.from_numpy(values).clamp(-448, 448).to(torch.float8_e4m3fn)
    bits = theirs.view(torch.uint8).numpy()
    assert (bits == 0x80).any()
    assert np.array_equal(E4M3.bits(E4M3.rounded(values)), np.where(bits == 0x80, 0, bits))


@pytest.mark.parametrize("kind", [E4M3, E2M1])
def test_nearest_with_ties_to_the_even_mantissa(kind: MiniFloat) -> None:
    """By distances to all levels, in float64."""
    values = _values(kind)[::7]
    ties = (kind.levels[1:] + kind.levels[:-1]) / 2
    values = np.concatenate([values, ties])
    codes = kind.rounded(values)
    away = np.abs(values[:, None].astype(np.float64) - kind.levels)
    assert np.array_equal(away[np.arange(len(values)), codes], away.min(1))
    tied = (away == away.min(1, keepdims=True)).sum(1) == 2
    assert tied.sum() >= len(ties)
    assert not (kind.bits(codes[tied]) & 1).any()


@pytest.mark.parametrize("kind", [E4M3, E2M1])
def test_bits_and_codes_are_inverses(kind: MiniFloat) -> None:
    codes = np.arange(len(kind.levels)).astype(np.uint8)
    assert np.array_equal(kind.codes(kind.bits(codes)), codes)
    assert len(np.unique(kind.bits(codes))) == len(codes)
    minus_zero = np.array([kind.sign], np.uint8)
    assert kind.levels[kind.codes(minus_zero)] == 0


@pytest.mark.parametrize(("kind", "bits"), [(E4M3, 0x7F), (E4M3, 0xFF), (E2M1, 0x10)])
def test_what_is_no_number_has_no_code(kind: MiniFloat, bits: int) -> None:
    with pytest.raises(ValueError, match="finite"):
        kind.codes(np.array([0, bits], np.uint8))


def test_powers_of_two() -> None:
    exponents = np.arange(255, dtype=np.uint8)
    assert powers(exponents).tolist() == [2.0 ** (e - 127) for e in range(255)]
    assert np.array_equal(floor_power(powers(exponents[1:])), np.arange(-126, 128))
    assert floor_power(np.float32([1.999, 2, 3, 0.75])).tolist() == [0, 1, 1, -1]
