"""Rounding as runtimes do it: each kind against its definition, then in a whole model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from qconvert.checkpoint import Checkpoint
from qconvert.formats.target import CacheRounding, InputRounding
from qconvert.runtimes import noise
from qconvert.runtimes.noise import Rounding, round_inputs, rounded, rounding_of
from qconvert.runtimes.reference import Reference, from_folder

TOKENS = list(range(5, 45))
SHAPES = ((512, 256), (256, 512), (256, 256), (128, 256))  # of the tiny llama's linears
E4M3 = np.sort(
    [
        (1 + mantissa / 8) * 2.0 ** (exponent - 7) if exponent else mantissa / 8 * 2.0**-6
        for exponent in range(16)
        for mantissa in range(8)
        if (exponent, mantissa) != (15, 7)
    ]
)
"""The magnitudes of e4m3 (fn): 4 bits of exponent, bias 7, no infinity, one NaN."""
E2M1 = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def nearest(value: float, levels: Any) -> float:
    return float(np.copysign(levels[np.abs(levels - abs(value)).argmin()], value))


def int8(row: Any, fixed: float | None) -> list[float]:
    scale = fixed or max(map(abs, row)) / 127
    return [min(max(round(value / scale), -128), 127) * scale for value in row]


def fp8(row: Any, fixed: float | None) -> list[float]:
    scale = fixed or max(map(abs, row)) / 448
    return [nearest(value / scale, E4M3) * scale for value in row]


def fp4(row: Any, fixed: float | None) -> list[float]:
    scale = max(map(abs, row)) / 6
    if fixed:
        scale = nearest(scale / fixed, E4M3) * fixed
    return [nearest(value / scale, E2M1) * scale for value in row]


@pytest.mark.parametrize(
    ("kind", "per", "fixed", "literal"),
    [
        ("int8", 0, None, int8), ("int8", 32, None, int8), ("int8", -1, 0.02, int8),
        ("fp8", 0, None, fp8), ("fp8", 32, None, fp8), ("fp8", -1, 0.005, fp8),
        ("fp4", 16, None, fp4), ("fp4", 16, 0.001, fp4),
    ],
)  # fmt: skip
def test_each_kind_follows_its_definition(
    kind: Any, per: int, fixed: float | None, literal: Any
) -> None:
    """Fixed scales are small enough for some values to be cut off."""
    values = torch.randn((3, 64), generator=torch.Generator().manual_seed(0)) * 1.5
    found = round_inputs(values, InputRounding(kind, per, fixed))
    width = per if per > 0 else 64
    rows = values.double().numpy().reshape(-1, width)
    expected = np.array([literal(row.tolist(), fixed) for row in rows]).reshape(3, 64)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_rows_of_zeros_stay_zeros() -> None:
    for kind, per in (("int8", 0), ("fp8", 0), ("fp4", 16)):
        kinds: Any = kind
        found = round_inputs(torch.zeros(2, 32), InputRounding(kinds, per))
        assert torch.equal(found, torch.zeros(2, 32))


@pytest.fixture
def model(source: Checkpoint) -> Reference:
    return from_folder(source.folder, threads=1)


def moved(model: Reference, rounding: Rounding) -> float:
    before = model.logits(TOKENS)
    with rounded(model, rounding):
        within = model.logits(TOKENS)
    np.testing.assert_array_equal(model.logits(TOKENS), before)  # and nothing of it remains
    return float(np.square(within - before).mean())


def test_coarser_rounding_moves_the_logits_more(model: Reference) -> None:
    by_block = [
        Rounding(by_shape=dict.fromkeys(SHAPES, InputRounding("int8", block)))
        for block in (32, 256)
    ]
    floats = [Rounding(name) for name in ("float32", "float16", "bfloat16")]
    found = [moved(model, one) for one in (*floats, *by_block)]
    assert found[0] == 0
    assert 0 < found[1] < 0.1 * found[2]
    assert found == sorted(found)
    assert found[-1] < 0.1


def test_names_choose_the_linears(model: Reference) -> None:
    one = InputRounding("int8", 0)
    names = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 1)]
    none = moved(model, Rounding("float32", inputs={"model.norm.weight": one}))
    found = [moved(model, Rounding("float32", inputs=dict.fromkeys(some, one)))
             for some in (names[1:], names)]  # fmt: skip
    assert none == 0
    assert 0 < found[0] < found[1]


def test_names_of_the_checkpoint_are_followed(model: Reference) -> None:
    inside = {"down": "model.layers.0.mlp.down_proj.weight"}
    named = Reference(model.model, 1, inside)
    assert moved(named, Rounding("float32", inputs={"down": InputRounding("int8", 0)})) > 0


def test_the_cache_is_rounded_by_block(model: Reference) -> None:
    fine = CacheRounding(0.02, 0.02)
    one = moved(model, Rounding("float32", cache={0: fine}))
    both = moved(model, Rounding("float32", cache={0: fine, 1: fine}))
    cut_off = moved(model, Rounding("float32", cache={0: CacheRounding(1e-3, 1e-3), 1: fine}))
    assert 0 < one < both < 0.1 * cut_off


@dataclass
class Told:
    """A reader, a runtime and a session in one: what `rounding_of` asks them."""

    dtype: str | None = None
    tensors: dict[str, Any] = field(default_factory=dict)
    float_type: str = "float16"


def test_a_session_knows_its_type_best() -> None:
    told: Any = Told()
    assert rounding_of(told, told, told, told) == Rounding("float16", True)
    assert rounding_of(told, None, told, told) == Rounding("float16", True)
    told.dtype = "bfloat16"
    assert rounding_of(told, told, told, told) == Rounding("bfloat16", True)


def test_a_cache_can_be_cut_towards_zero() -> None:
    values = torch.randn(4096, generator=torch.Generator().manual_seed(2)) * 3
    fixed = 0.03
    levels = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float() * fixed
    literal = levels[torch.searchsorted(levels, values.abs(), right=True) - 1] * values.sign()
    found = noise._cut_to_e4m3(values, fixed)
    torch.testing.assert_close(found, literal, rtol=1e-6, atol=0)
    assert (found.abs() <= values.abs() * (1 + 1e-6)).all()
    assert (noise._cut_to_e4m3(-values, fixed) == -found).all()


def test_the_last_columns_may_be_fewer() -> None:
    values = torch.randn((3, 72), generator=torch.Generator().manual_seed(1))
    found = round_inputs(values, InputRounding("int8", 32))
    assert found.shape == (3, 72)
    pieces = [row[at : at + 32] for row in values.double().tolist() for at in (0, 32, 64)]
    expected = [value for piece in pieces for value in int8(piece, None)]
    np.testing.assert_allclose(found.flatten().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_plain_inputs_are_not_rounded_whatever_the_file_says() -> None:
    told: Any = Told("float32")
    told.input_rounding = {"a": InputRounding("int8", 32)}
    assert rounding_of(told, told, told, told).inputs == told.input_rounding
    told.plain_inputs = True
    assert rounding_of(told, told, told, told).inputs == {}
