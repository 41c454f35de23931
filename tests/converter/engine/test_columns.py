"""Scales of columns that the output holds: of the engine, of the file and of resumed jobs alike."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from qconvert.asked import Asked
from qconvert.calibrate import calibrate, transformed
from qconvert.checkpoint import open_checkpoint
from qconvert.codes import Kept
from qconvert.engine.block import READS
from qconvert.engine.bundle import Bundle, open_bundle
from qconvert.engine.tensorfile import open_tensors
from qconvert.formats.known_grids import grid_named
from qconvert.formats.target import InputRounding, OutputTensor, Plan
from qconvert.pipeline import convert
from qconvert.recipe import parse
from qconvert.runtimes import reference
from qconvert.runtimes.noise import round_inputs

Tiny = Callable[..., Path]
HELD = ("attn_o", "ffn_down")
GRID = "int4_g128_portable"


@pytest.fixture(scope="module")
def model(tiny_model: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few values are loud. Of the two query heads that share them, the first has small weights
    for them in o, which want a scale, and the second large ones, which do not."""
    folder = tmp_path_factory.mktemp("columns") / "uneven"
    shutil.copytree(tiny_model("llama", hidden_size=128, intermediate_size=256), folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    loud = [5, 20, 27]  # of the 32 of a head
    for name, w in tensors.items():
        if name.endswith("v_proj.weight"):
            w.view(2, 32, -1)[:, loud] *= 20
        if name.endswith("o_proj.weight"):
            by_head = w.view(len(w), 4, 32)
            by_head[:, 0::2, loud] *= 0.05
            by_head[:, 1::2, loud] *= 4
        if name.endswith("down_proj.weight"):
            w[:, loud] *= 0.1
    save_file(tensors, path, {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def free(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """By awq, with places for all of HELD."""
    return bundle_of(model, plan_of(model, HELD), tmp_path_factory.mktemp("free") / "work")


def plan_of(model: Path, held: Sequence[str], how: InputRounding | None = None) -> Plan:
    """Every linear on 4 bits; a place for scales of the columns of `held`."""
    outputs, grid = [], grid_named(GRID)
    for one in open_checkpoint(model).tensors:
        linear = one.role in READS and one.part == "weight"
        outputs.append(OutputTensor(
            one.name, one.shape, grid if linear else None, "x" if linear else one.dtype,
            one.nbytes, one, input_rounding=how if linear else None,
        ))  # fmt: skip
        if one.role in held:
            outputs.append(OutputTensor(
                f"{one.name}.pre", one.shape[1:], None, "BF16", 0, None, column_scale=one.name
            ))  # fmt: skip
    return Plan("none", "w4", tuple(outputs), "none")


def bundle_of(model: Path, plan: Plan, folder: Path, method: str = "awq", **more: Any) -> Bundle:
    threads = more.pop("threads", 1)
    asked = Asked(method=method, calib_rows=6, calib_length=32, compute="float32", **more)
    source, recipe = open_checkpoint(model), parse(method)
    seen = transformed(source, recipe, asked)[0]
    calibrate(source, seen, plan, recipe, asked, folder, threads, lambda *_: None)
    return open_bundle(folder)


def errors(bundle: Bundle, role: str) -> list[float]:
    blocks = range(bundle.store.journal.blocks)
    linears = [one for index in blocks for one in bundle.store.record(index).linears]
    return [one.error for one in linears if one.role == role]


def test_free_columns_round_better_than_shared_ones(
    model: Path, free: Bundle, tmp_path: Path
) -> None:
    """And are exact in both half types; norms take up the scales of what they make as ever."""
    shared = bundle_of(model, plan_of(model, ()), tmp_path / "shared")
    first, other = errors(free, "attn_o")[0], errors(shared, "attn_o")[0]  # of the same input
    assert first < 0.9 * other
    assert errors(free, "ffn_down")[0] < 1.02 * errors(shared, "ffn_down")[0]  # free in both
    assert shared.scaled == ()
    roles = {one.name: one.role for one in free.tensors}
    assert {roles[name] for name in free.scaled} == set(HELD)
    for one in free.tensors:
        if len(one.shape) > 1 and one.block is not None:
            scale = free.column_scale(one.name)
            assert (scale is not None) == (one.name in free.scaled)
            if scale is not None:
                assert scale.shape == one.shape[1:]
                assert (scale > 0).all()
                assert np.unique(scale).size > 8
                assert np.array_equal(scale, scale.astype(np.float16).astype(np.float32))
                stored = torch.from_numpy(scale)
                assert torch.equal(stored, stored.bfloat16().float())


def test_what_produces_the_input_stays_as_it_is(model: Path, tmp_path: Path) -> None:
    """With o and down alone on a grid, v and up are as in the source."""
    plan = plan_of(model, HELD)
    kept = tuple(
        replace(one, grid=None, dtype="F32")
        if one.source and one.source.role not in HELD else one
        for one in plan.tensors
    )  # fmt: skip
    bundle = bundle_of(model, replace(plan, tensors=kept), tmp_path / "work")
    source, seen = open_checkpoint(model), 0
    for one in source.tensors:
        if one.role in ("attn_v", "ffn_up") and one.part == "weight":
            rows = one.shape[0]
            assert np.array_equal(bundle.rows(one, 0, rows), source.rows(one, 0, rows))
            seen += 1
    assert seen == 4
    assert bundle.scaled


@pytest.mark.parametrize(("method", "rule"), [("awq", "max"), ("smoothquant+awq", "mse")])
def test_the_model_of_the_file_is_that_of_the_engine(
    model: Path, tmp_path: Path, method: str, rule: str
) -> None:
    """Literally: what a linear reads, times the scale that the file holds, rounded as the file
    says, times what the codes stand for. Its inputs are what the engine has seen."""
    how = InputRounding("int8", -1)
    work = tmp_path / "work"
    bundle = bundle_of(model, plan_of(model, HELD, how), work, method, activation_scales=rule)
    weights, seen = {}, dict[tuple[int, str], float]()
    made = reference.from_folder(model, threads=1)
    for one in bundle.tensors:
        rows = one.shape[0] if len(one.shape) > 1 else 1
        codes = bundle.quantized(one.name, 0, rows)
        weights[one.name] = (
            bundle.rows(one, 0, rows) if codes is None else grid_named(codes.grid).decode(codes)
        )
        if codes is not None:
            assert one.block is not None
            _listen(made, bundle, one, how, seen)
    state = {name: torch.from_numpy(values) for name, values in weights.items()}
    made.model.load_state_dict(state, strict=False)
    for row in np.load(work / "tokens.npy").tolist():
        made.logits(row)
    for (index, name), value in seen.items():
        record = bundle.store.record(index)
        if rule == "max":
            assert record.largest[name] == pytest.approx(value, rel=2e-3), (index, name)
        else:  # nearly everything is reached
            assert 0.02 * value < record.largest[name] <= 1.1 * value
            assert record.largest[name] == record.covered[name]
    assert len(seen) == 8
    assert bundle.scaled


def _listen(
    made: Any, bundle: Bundle, one: Any, how: InputRounding, seen: dict[tuple[int, str], float]
) -> None:
    scale, key = bundle.column_scale(one.name), (one.block, READS[one.role])
    columns = torch.ones(one.shape[1]) if scale is None else torch.from_numpy(scale)
    stated = replace(how, scale=bundle.store.record(one.block).covered[key[1]] / 127.0)

    def before(_: Any, args: Any) -> Any:
        x = args[0] * columns
        seen[key] = max(seen.get(key, 0.0), float(x.abs().max()))
        return (round_inputs(x, stated), *args[1:])

    linear = made.model.get_submodule(one.name.removesuffix(".weight"))
    linear.register_forward_pre_hook(before)


@pytest.mark.parametrize("method", ["awq", "smoothquant+best"])
def test_the_bytes_are_the_same_after_a_stop_and_with_more_threads(
    model: Path, tmp_path: Path, method: str
) -> None:
    """`best` with effort 2 looks at the output of whole blocks, too."""
    plan, work = plan_of(model, HELD, InputRounding("fp8", -1)), tmp_path / "work"
    bundle_of(model, plan, work, method, effort=2)
    before = [content(work, index) for index in range(2)]
    assert any(name.endswith("|columns") for name in before[0])
    (work / "blocks" / "00001.safetensors").unlink()
    shutil.rmtree(work / "rows")
    bundle_of(model, plan, work, method, effort=2, threads=2)
    assert [content(work, index) for index in range(2)] == before


def content(work: Path, index: int) -> dict[str, bytes]:
    file = open_tensors(work / "blocks" / f"{index:05d}.safetensors", "")
    record = json.loads(file.metadata["part"])["record"]
    kept = {name: file.rows(name).tobytes() for name in file.entries}
    return {**kept, "": json.dumps([record["covered"], record["largest"]]).encode()}


def test_what_has_no_place_for_them_is_refused_and_floats_take_them_in(
    model: Path, free: Bundle, tmp_path: Path
) -> None:
    bundle = free
    assert Kept(bundle).problems(plan_of(model, HELD)) == []
    (reason,) = Kept(bundle).problems(plan_of(model, HELD[:1]))
    assert "tensors, such as model.layers.0.mlp.down_proj.weight" in reason.problem
    assert "no place for them" in reason.problem
    assert "--to none --type w4" in reason.remedy
    out = convert(bundle.store.folder, to="vllm", type="f32", out=tmp_path / "float").folder
    assert out is not None
    written = load_file(next(out.glob("*.safetensors")))
    for one in bundle.tensors:
        if one.name in bundle.scaled:
            codes = bundle.quantized(one.name, 0, one.shape[0])
            scale = bundle.column_scale(one.name)
            assert codes is not None
            assert scale is not None
            expected = grid_named(GRID).decode(codes) * scale
            assert np.array_equal(written[one.name].numpy(), expected)


def test_only_methods_that_use_them_see_the_places(model: Path, tmp_path: Path) -> None:
    """One work folder serves outputs with such vectors and without, where nothing fills them."""
    bundle = bundle_of(model, plan_of(model, ()), tmp_path / "work", "gptq")
    again = bundle_of(model, plan_of(model, HELD), tmp_path / "work", "gptq", resume=True)
    assert again.store.journal.fingerprint == bundle.store.journal.fingerprint
    assert Kept(again).problems(plan_of(model, HELD)) == []
    assert all(again.column_scale(one.name) is None for one in again.tensors)
