"""Calibration that goes wrong says where; channels that are never used do no harm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from qconvert.algorithms.slots import Setting
from qconvert.asked import Asked
from qconvert.checkpoint import open_checkpoint
from qconvert.engine.bundle import open_bundle
from qconvert.engine.pieces import Piece
from qconvert.engine.solve import solve
from qconvert.formats.gguf.grids import GRIDS
from qconvert.formats.refusal import Refused
from qconvert.pipeline import Conversion, convert
from qconvert.recipe import parse

Tiny = Callable[..., Path]
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
METHODS = ("best", "gptq", "awq+gptq", "smoothquant+best", "osplus+gptq", "hqq+gptq", "awq+best")


def edited(folder: Path, edit: Callable[[dict[str, np.ndarray]], None]) -> Path:
    """Change the stored weights of a model folder."""
    stored = load_file(folder / "model.safetensors")
    edit(stored)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    return folder


def run(model: Path, folder: Path, method: str = "best", **options: Any) -> Conversion:
    asked = Asked(
        method=method, calib_rows=6, calib_length=24, work=folder / "work", keep_work=True
    )
    return convert(
        model, type="Q4_0", out=folder / "out.gguf", threads=1, force=True, asked=asked, **options
    )


def decoded(folder: Path) -> Mapping[str, np.ndarray]:
    """What the blocks hold, transforms included."""
    bundle = open_bundle(folder / "work")
    return {
        one.name: bundle.rows(one, 0, one.shape[0])
        for one in bundle.tensors
        if one.block is not None and len(one.shape) == 2
    }


LAYER = "model.layers.1"


def kill_channels(stored: dict[str, np.ndarray]) -> None:
    """One channel of the four inputs of block 1 (of attn_mid: one of each query head)."""
    stored[f"{LAYER}.input_layernorm.weight"][3] = 0
    stored[f"{LAYER}.post_attention_layernorm.weight"][5] = 0
    stored[f"{LAYER}.self_attn.v_proj.weight"][2] = 0
    stored[f"{LAYER}.mlp.up_proj.weight"][7] = 0


@pytest.mark.parametrize("method", METHODS)
def test_dead_channels_are_counted_and_do_no_harm(
    tiny_copy: Tiny, tmp_path: Path, method: str
) -> None:
    model = edited(tiny_copy("llama", **SMALL), kill_channels)
    done = run(model, tmp_path, method)
    assert done.calibrated is not None
    dead = [{one.name: one.dead for one in block.inputs} for block in done.calibrated.blocks]
    assert dead[0] == dict.fromkeys(dead[0], 0)
    assert dead[1] == {"attn_in": 1, "attn_mid": 2, "ffn_in": 1, "ffn_mid": 1}
    for block in done.calibrated.blocks:
        assert all(np.isfinite([one.error, one.plain_error]).all() for one in block.linears)
        assert all(0 < one.error < 0.05 for one in block.linears)
    found, source = decoded(tmp_path), open_checkpoint(model)
    for tensor in source.tensors:
        if tensor.name in found:
            assert np.isfinite(found[tensor.name]).all()
    columns = {"q_proj": 3, "k_proj": 3, "up_proj": 5, "gate_proj": 5, "down_proj": 7, "o_proj": 2}
    for tensor in source.tensors:
        column = columns.get(tensor.name.split(".")[-2])
        if tensor.block != 1 or column is None:
            continue
        w, q = source.rows(tensor, 0, tensor.shape[0])[:, column], found[tensor.name][:, column]
        if not set(done.calibrated.steps) & {"awq", "smoothquant", "osplus"}:
            assert np.square(w - q).mean() < 0.1 * np.square(w).mean(), tensor.name


@pytest.mark.parametrize("method", METHODS)
def test_an_input_that_is_all_zero_converts(tiny_copy: Tiny, tmp_path: Path, method: str) -> None:
    def silence(stored: dict[str, np.ndarray]) -> None:
        stored[f"{LAYER}.input_layernorm.weight"][:] = 0
        stored[f"{LAYER}.mlp.gate_proj.weight"][:] = 0

    model = edited(tiny_copy("llama", **SMALL), silence)
    done = run(model, tmp_path, method)
    assert done.calibrated is not None
    dead = {one.name: one.dead for one in done.calibrated.blocks[1].inputs}
    assert dead == {"attn_in": 64, "attn_mid": 64, "ffn_in": 0, "ffn_mid": 128}
    source, found = open_checkpoint(model), decoded(tmp_path)
    for name, q in found.items():
        tensor = next(one for one in source.tensors if one.name == name)
        w = source.rows(tensor, 0, tensor.shape[0])
        assert np.isfinite(q).all()
        if "awq" not in method and "smooth" not in method and "osplus" not in method:
            assert np.square(w - q).mean() <= 0.05 * np.square(w).mean(), name


@pytest.mark.parametrize("kind", ["overflow", "outlier"])
def test_activations_that_are_not_finite_name_block_and_input(
    tiny_copy: Tiny, tmp_path: Path, kind: str
) -> None:
    def blow_up(stored: dict[str, np.ndarray]) -> None:
        stored[f"{LAYER}.mlp.up_proj.weight"][7] = 3e38 if kind == "overflow" else 1e25
        stored[f"{LAYER}.mlp.gate_proj.weight"][7] = 3e38 if kind == "overflow" else 1e25

    model = edited(tiny_copy("llama", **SMALL), blow_up)
    with pytest.raises(Refused, match="not finite at block 1, ffn_mid") as caught:
        run(model, tmp_path)
    assert "--calib" in str(caught.value)
    assert (tmp_path / "work" / "blocks" / "00000.safetensors").is_file()
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("method", ["gptq", "best", "hqq+gptq"])
def test_moments_that_do_not_factor_name_the_tensor(method: str) -> None:
    w = torch.from_numpy(np.random.default_rng(0).standard_normal((64, 64), np.float32))
    second = -torch.eye(64)
    second[0, 0] = 1000  # mean of the diagonal above zero: damping is not enough
    piece = Piece(np.arange(64), second, torch.eye(64))
    with pytest.raises(Refused, match=r"blk\.7\.q: the second moments .* do not factor") as caught:
        solve("blk.7.q", "attn_q", w, [piece], GRIDS["Q4_0"], parse(method), Setting())
    assert "--calib-rows" in str(caught.value)


def test_a_weight_too_large_for_the_grid_names_the_tensor(tiny_copy: Tiny, tmp_path: Path) -> None:
    def spoil(stored: dict[str, np.ndarray]) -> None:
        stored[f"{LAYER}.self_attn.k_proj.weight"][3, 4] = 1e9

    model = edited(tiny_copy("llama", **SMALL), spoil)
    with pytest.raises(Refused, match=r"layers\.1\.self_attn\.k_proj\.weight holds a weight too"):
        run(model, tmp_path)
    assert (tmp_path / "work" / "blocks" / "00000.safetensors").is_file()
