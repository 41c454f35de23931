"""Rounding as runtimes do it: each kind against its definition, then in a whole model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from qconvert.checkpoint import Checkpoint
from qconvert.formats.target import CacheRounding, InputRounding
from qconvert.runtimes.noise import Rounding, round_inputs, rounded, rounding_of, rounding_told
from qconvert.runtimes.reference import Reference, from_folder
from qconvert.runtimes.rounding import CACHES, cut_to_e4m3

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


def test_an_nvfp4_cache_has_a_scale_for_each_16_columns_of_a_head() -> None:
    """Against the definition: a head of 64 columns, four scales, each in e4m3 times the stored."""
    values = torch.randn((2, 3, 64), generator=torch.Generator().manual_seed(3)) * 2
    fixed = 3.0 / (6 * 448)  # of a largest magnitude that some values exceed
    pieces = values.double().numpy().reshape(-1, 16)
    expected = np.array([fp4(piece.tolist(), fixed) for piece in pieces]).reshape(2, 3, 64)
    found = CACHES["nvfp4"](values, fixed)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_an_nvfp4_cache_is_coarser_than_one_in_fp8(model: Reference) -> None:
    kinds: Any = ("fp8", "nvfp4")
    fine, coarse = (
        moved(model, Rounding("float32", cache={
            block: CacheRounding(30.0 / 448, 30.0 / 448, kind) for block in (0, 1)
        }))
        for kind in kinds
    )  # fmt: skip
    assert 0 < fine < 0.2 * coarse


def test_columns_are_scaled_before_they_are_rounded(model: Reference) -> None:
    """Hooks run in the order in which they are set: one sees the input before, one after."""
    name = "model.layers.0.mlp.down_proj.weight"
    linear = model.model.get_submodule(name.removesuffix(".weight"))
    how = InputRounding("int8", -1, 0.01)
    scales = np.linspace(0.25, 8, linear.weight.shape[1], dtype=np.float32)
    scales[3] = 0  # whose column of the decoded weight is 0
    seen: list[Any] = []

    def look(_: Any, inputs: tuple[Any, ...]) -> None:
        seen.append(inputs[0].numpy().copy())

    first = linear.register_forward_pre_hook(look)
    with rounded(model, Rounding("float32", inputs={name: how}, columns={name: scales})):
        last = linear.register_forward_pre_hook(look)
        model.logits(TOKENS)
    first.remove()
    last.remove()
    before, after = seen
    factors = np.where(scales == 0, 1, scales)
    literal = np.round(before * factors / 0.01).clip(-128, 127) * 0.01 / factors
    close = np.isclose(after, literal, rtol=1e-4, atol=1e-6)
    assert close.mean() > 0.999  # but for ties
    assert np.abs(after - before).max() > 1e-4


def test_columns_without_a_rounding_change_nothing_but_floats(model: Reference) -> None:
    name = "model.layers.1.self_attn.o_proj.weight"
    columns = {name: np.full(256, 0.3, np.float32)}
    assert moved(model, Rounding("float32", columns=columns)) < 1e-12
    assert 0 < moved(model, Rounding("bfloat16", columns=columns)) < 1e-3


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
    found = cut_to_e4m3(values, fixed)
    torch.testing.assert_close(found, literal, rtol=1e-6, atol=0)
    assert (found.abs() <= values.abs() * (1 + 1e-6)).all()
    assert (cut_to_e4m3(-values, fixed) == -found).all()


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
    told.column_scales = {"a": np.ones(2, np.float32)}
    assert rounding_of(told, told, told, told).columns == told.column_scales
    told.plain_inputs = True
    assert rounding_of(told, told, told, told).inputs == {}
    assert rounding_of(told, told, told, told).columns == {}


def test_what_a_file_says_is_rounded_in_no_float_type() -> None:
    told: Any = Told("float16")
    assert rounding_told(told, told) == Rounding("float32")
    told.input_rounding = {"a": InputRounding("fp8", -1, 0.5)}
    told.cache_rounding = {0: CacheRounding(1.0, 2.0, "nvfp4")}
    found = rounding_told(told, told)
    assert (found.inputs, found.cache) == (told.input_rounding, told.cache_rounding)
    assert not found.everywhere
