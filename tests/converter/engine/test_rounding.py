"""Rows that pass on meet the activations that a runtime rounds, as `runtimes.noise` has them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qconvert.asked import Asked
from qconvert.calibrate import calibrate
from qconvert.checkpoint import open_checkpoint
from qconvert.engine.block import READS
from qconvert.engine.bundle import Bundle, open_bundle
from qconvert.engine.rounding import Rounded
from qconvert.formats.known_grids import grid_named
from qconvert.formats.target import InputRounding, OutputTensor, Plan
from qconvert.recipe import parse
from qconvert.runtimes import reference
from qconvert.runtimes.noise import Rounding, round_inputs, rounded

Tiny = Callable[..., Path]
TOPS = {"int8": 127.0, "fp8": 448.0, "fp4": 6.0 * 448.0}
KINDS = [("int8", 0), ("int8", -1), ("fp8", 0), ("fp8", -1), ("fp8", 128), ("fp4", 16)]
every_kind = pytest.mark.parametrize(("kind", "per"), KINDS)


def fixed(how: InputRounding, largest: float) -> InputRounding:
    """With the scale that a file would state, where it states one."""
    stated = how.per < 0 or how.kind == "fp4"
    return replace(how, scale=largest / TOPS[how.kind]) if stated else how


@every_kind
def test_values_are_those_that_runtimes_make(kind: Any, per: int) -> None:
    made = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    x = made * torch.linspace(0.01, 4, 256)
    x[3], x[4, :16] = 0, 0
    x[5] *= 100  # beyond what a fixed scale covers
    how = InputRounding(kind, per)
    largest = float(x[:5].abs().max())
    found = Rounded(how, largest)(x)
    wanted = round_inputs(x, fixed(how, largest))
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    assert not torch.equal(found, x)


@every_kind
def test_gradients_pass(kind: Any, per: int) -> None:
    x = torch.randn(4, 128, requires_grad=True)
    by = torch.randn(4, 128)
    (Rounded(InputRounding(kind, per), 4.0)(x) * by).sum().backward()
    assert torch.equal(x.grad, by)  # type: ignore[arg-type]


def plan_of(model: Path, how: InputRounding) -> Plan:
    grid, outputs = grid_named("int8_channel_f32"), []
    for one in open_checkpoint(model).tensors:
        linear = one.role in READS and one.part == "weight"
        outputs.append(OutputTensor(
            one.name, one.shape, grid if linear else None, "x" if linear else one.dtype,
            one.nbytes, one, input_rounding=how if linear else None,
        ))  # fmt: skip
    return Plan("none", "w8a8", tuple(outputs), "none")


def bundle_of(model: Path, how: InputRounding, folder: Path, method: str = "gptq") -> Bundle:
    asked = Asked(
        method=method, calib_rows=6, calib_length=32, compute="float32", effort=2,
        activation_scales="max",
    )  # fmt: skip
    source, plan, recipe = open_checkpoint(model), plan_of(model, how), parse(method)
    calibrate(source, source, plan, recipe, asked, folder, 1, lambda *_: None)
    return open_bundle(folder)


@pytest.mark.parametrize(("kind", "per"), [("int8", 0), ("int8", -1), ("fp8", -1), ("fp4", 16)])
def test_what_was_seen_is_what_a_rounding_runtime_sees(
    tiny_model: Tiny, tmp_path: Path, kind: Any, per: int
) -> None:
    """Of the second block: what it reads has passed the rounded inputs of the first."""
    model, how = tiny_model("llama"), InputRounding(kind, per)
    bundle = bundle_of(model, how, tmp_path / "work")
    covered = [bundle.store.record(index).covered for index in (0, 1)]
    inputs = {
        one.name: fixed(how, covered[one.block or 0][READS[one.role]])
        for one in bundle.tensors
        if one.role in READS
    }
    weights = {
        one.name: bundle.rows(one, 0, one.shape[0] if len(one.shape) > 1 else 1)
        for one in bundle.tensors
    }
    made = reference.from_weights(bundle, weights, threads=1)
    seen: dict[int, float] = {0: 0.0, 1: 0.0}

    def hook(index: int) -> Any:
        def see(_: Any, args: Any) -> None:
            seen[index] = max(seen[index], float(args[0].abs().max()))

        return see

    with ExitStack() as stack:
        for index, layer in enumerate(made.model.model.layers):  # before it is rounded
            stack.callback(layer.mlp.down_proj.register_forward_pre_hook(hook(index)).remove)
        stack.enter_context(rounded(made, Rounding(float_type="float32", inputs=inputs)))
        for row in np.load(tmp_path / "work" / "tokens.npy").tolist():
            made.logits(row)
    for index, value in seen.items():
        found = bundle.store.record(index).largest["ffn_mid"]
        assert found == pytest.approx(value, rel=2e-3)  # a value at a border may go either way


@pytest.mark.parametrize("method", ["gptq", "best"])
def test_resumed_rows_are_rounded_alike(tiny_model: Tiny, tmp_path: Path, method: str) -> None:
    model, how = tiny_model("llama"), InputRounding("int8", -1)
    work = tmp_path / "work"
    bundle = bundle_of(model, how, work, method)
    names = [one.name for one in bundle.tensors if one.block == 1 and one.role in READS]
    before = [bundle.quantized(name, 0, 8) for name in names]
    (work / "blocks" / "00001.safetensors").unlink()
    shutil.rmtree(work / "rows")
    again = bundle_of(model, how, work, method)
    for name, old in zip(names, before, strict=True):
        new = again.quantized(name, 0, 8)
        assert old is not None
        assert new is not None
        assert np.array_equal(old.codes, new.codes)
        assert np.array_equal(old.params["d"], new.params["d"])


def test_it_changes_what_later_blocks_are_calibrated_on(tiny_model: Tiny, tmp_path: Path) -> None:
    model = tiny_model("llama")
    coarse = bundle_of(model, InputRounding("fp4", 16), tmp_path / "coarse")
    fine = bundle_of(model, InputRounding("int8", 0), tmp_path / "fine")
    name = next(one.name for one in fine.tensors if one.block == 1 and one.role == "attn_q")
    first, second = (one.quantized(name, 0, 64) for one in (coarse, fine))
    assert first is not None
    assert second is not None
    assert not np.array_equal(first.codes, second.codes)
