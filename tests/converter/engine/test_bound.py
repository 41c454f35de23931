"""Scales that rows or tensors have in common: the same with data and without, whoever shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qconvert.asked import Asked
from qconvert.calibrate import calibrate, transformed
from qconvert.checkpoint import Checkpoint, open_checkpoint
from qconvert.codes import Fitted
from qconvert.engine.block import READS, Block
from qconvert.engine.bundle import Bundle, open_bundle
from qconvert.engine.observe import Pair, Sight
from qconvert.engine.pieces import pieces
from qconvert.formats.known_grids import grid_named
from qconvert.formats.target import OutputTensor, Plan, Request, Statistic
from qconvert.recipe import parse

Tiny = Callable[..., Path]
FUSED = (("attn_q", "attn_k", "attn_v"), ("ffn_gate", "ffn_up"))
SHARED = {"fp8_tensor": "d", "nvfp4": "amax"}
"""Grids with one scale for all that a runtime fuses, and the parameter that it is in."""
SMALL: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 256, "intermediate_size": 384}


def plan_of(source: Checkpoint, grid: str) -> Plan:
    """Every linear of the blocks on `grid`, with one scale for what is fused, and the statistics of
    every input."""
    linears = {
        (one.block, one.role): one
        for one in source.tensors
        if one.role in READS and one.part == "weight"
    }
    outputs = []
    for one in source.tensors:
        quantized = linears.get((one.block, one.role)) is one
        mates = next((roles for roles in FUSED if one.role in roles), (one.role,))
        found = grid_named(grid) if quantized else None
        shares = tuple(linears[one.block, role].name for role in mates) if quantized else ()
        outputs.append(OutputTensor(one.name, one.shape, found, "x" if found else one.dtype,
                                    one.nbytes, one, shares=shares))  # fmt: skip
        if quantized:
            statistic = Statistic("input", one.name, 448.0)
            outputs.append(
                OutputTensor(f"{one.name}.in", (), None, "F32", 4, None, statistic=statistic)
            )
    return Plan("none", grid, tuple(outputs), "none")


def bundle_of(model: Path, plan: Plan, method: str, folder: Path) -> Bundle:
    asked = Asked(method=method, calib_rows=6, calib_length=32, keep_work=True)
    source, recipe = open_checkpoint(model), parse(method)
    seen = transformed(source, recipe, asked)[0]
    calibrate(source, seen, plan, recipe, asked, folder, 1, lambda *_: None)
    return open_bundle(folder)


def codes_of(bundle: Bundle, tensor: OutputTensor) -> Any:
    assert tensor.source is not None
    found = bundle.quantized(tensor.source.name, 0, tensor.source.shape[0])
    assert found is not None
    return found


@pytest.mark.parametrize(
    "grid", ["fp8_tensor", "nvfp4", "fp8_block128", "fp8_channel", "int8_channel_f32"]
)
@pytest.mark.parametrize("step", [100, 1000])
def test_rtn_is_the_same_with_statistics_and_without(
    tiny_model: Tiny, tmp_path: Path, grid: str, step: int
) -> None:
    """`step` rows at once: not a multiple of the rows that share a scale."""
    model = tiny_model("llama", **SMALL)
    source = open_checkpoint(model)
    plan = plan_of(source, grid)
    bundle = bundle_of(model, plan, "rtn", tmp_path / "work")
    fitted, compared = Fitted(source), 0
    for tensor in plan.tensors:
        if tensor.grid is None:
            continue
        kept, rows = codes_of(bundle, tensor), tensor.shape[0]
        spans = [(at, min(at + step, rows)) for at in range(0, rows, step)]
        for (start, stop), chunk in zip(spans, fitted(tensor, spans, 1), strict=True):
            assert np.array_equal(chunk.codes, kept.codes[start:stop]), tensor.name
            for name, values in chunk.params.items():
                assert np.array_equal(values, kept.params[name][start:stop]), (tensor.name, name)
        compared += 1
        assert bundle.largest(Statistic("input", tensor.name, 1.0)) > 0
    assert compared == 14


@pytest.mark.parametrize("grid", SHARED)
@pytest.mark.parametrize("method", ["gptq", "smoothquant", "best"])
def test_what_is_fused_has_one_scale(
    tiny_model: Tiny, tmp_path: Path, grid: str, method: str
) -> None:
    model = tiny_model("llama", **SMALL)
    plan = plan_of(open_checkpoint(model), grid)
    bundle = bundle_of(model, plan, method, tmp_path / "work")
    by_name = {one.name: one for one in plan.tensors}
    found = set()
    for tensor in plan.tensors:
        if tensor.grid is not None:
            scales = {
                float(value)
                for name in tensor.shares
                for value in np.unique(codes_of(bundle, by_name[name]).params[SHARED[grid]])
            }
            assert len(scales) == 1, tensor.name
            found |= scales
    assert len(found) == 8  # of two blocks: qkv, o, gate and up, down


@pytest.mark.parametrize("grid", SHARED)
def test_a_louder_mate_widens_the_scale_of_all(tiny_model: Tiny, grid: str) -> None:
    source = open_checkpoint(tiny_model("llama", **SMALL))
    tensors = {one.name: one for one in plan_of(source, grid).tensors}
    key = tensors["model.layers.0.self_attn.v_proj.weight"]
    together, alone = (
        next(Fitted(source)(one, [(0, 8)], 1)) for one in (key, replace(key, shares=()))
    )

    def largest(name: str) -> float:
        tensor = tensors[name].source
        assert tensor is not None
        return float(np.abs(source.rows(tensor, 0, tensor.shape[0])).max())

    most = max(largest(name) for name in key.shares)
    assert most > largest(key.name)
    per = together.params[SHARED[grid]][0, 0] / alone.params[SHARED[grid]][0, 0]
    assert per == pytest.approx(most / largest(key.name), rel=1e-6)


def sight(cols: int) -> Sight:
    class Seen:
        second = torch.eye(cols)

    class Both:
        fit = held = Seen()

    return Sight({"attn_in": Both()}, Pair(torch.eye(cols), torch.eye(cols)))  # type: ignore


@pytest.mark.parametrize(("together", "parts"), [(1, 2), (64, 2), (128, 2), (256, 1), (80, 1)])
def test_rows_that_share_are_not_parted(tiny_model: Tiny, together: int, parts: int) -> None:
    """phi3 has q, k and v in one: 256, 128 and 128 rows."""
    source = open_checkpoint(tiny_model("phi3"))
    block = Block(0, {("attn_qkv", "weight"): torch.zeros(512, 256)})
    found = pieces(source, block, "attn_qkv", sight(256), together)
    assert len(found) == parts
    rows = np.concatenate([one.rows for one in found])
    assert np.array_equal(np.sort(rows), np.arange(512))
    if parts == 2:
        assert np.array_equal(found[1].rows, np.arange(384, 512))


def test_joined_linears_in_blocks_of_128(tiny_model: Tiny, tmp_path: Path) -> None:
    model = tiny_model("phi3")
    plan = plan_of(open_checkpoint(model), "fp8_block128")
    bundle = bundle_of(model, plan, "best", tmp_path / "work")
    compared = 0
    for tensor in plan.tensors:
        if tensor.grid is not None:
            scale = codes_of(bundle, tensor).params["d"]
            rows = len(scale) - len(scale) % 128
            blocks = scale[:rows].reshape(-1, 128, scale.shape[1])
            assert (blocks == blocks[:, :1]).all(), tensor.name
            assert len(np.unique(scale)) > 1
            compared += 1
    assert compared == 8


class Target:
    """What `Kept.usual` asks of a target."""

    def __init__(self, name: str, *types: str) -> None:
        self.name, self.types = name, [(one, "") for one in types]


@pytest.mark.parametrize(
    ("target", "asked", "found"),
    [
        (Target("none"), {}, "fp8_tensor"),
        (Target("other", "x", "fp8_tensor"), {}, "fp8_tensor"),
        (Target("other", "x", "fp8_tensor"), {"container": "fp8", "kv": "fp8", "tp": 2},
         "fp8_tensor"),
        (Target("other", "x"), {}, None),
        (Target("none"), {"bits": 4}, None),
        (Target("none"), {"scheme": "fp8"}, None),
        (Target("none"), {"group": 0}, None),
        (Target("none"), {"symmetric": False}, None),
        (Target("none"), {"static": False}, None),
        (Target("none"), {"layers": (("*", "float"),)}, None),
    ],
)  # fmt: skip
def test_the_type_that_a_bundle_was_made_for(
    tiny_model: Tiny, tmp_path: Path, target: Any, asked: dict[str, Any], found: str | None
) -> None:
    from qconvert.codes import Kept

    class Made:
        target, type = "none", "fp8_tensor"

    request = Kept(Made()).usual(Request(**asked), target)  # type: ignore[arg-type]
    assert request == replace(Request(**asked), type=found)


def test_a_plan_with_statistics_wants_a_folder_that_has_them(
    free: Any, tiny_model: Tiny, tmp_path: Path
) -> None:
    from qconvert.codes import Kept

    bundle = open_bundle(free.finished(tiny_model("llama"), tmp_path / "work", "Q4_0"))
    codes = Kept(bundle)
    statistic = Statistic("key", "model.layers.0.self_attn.k_proj.weight", 448.0)
    measured = OutputTensor("k_scale", (), None, "F32", 4, None, statistic=statistic)
    (reason,) = codes.problems(Plan("x", "y", (measured, measured), "z"))
    assert "without the largest magnitudes" in reason.problem
    assert codes.problems(Plan("x", "y", (), "z")) == []
