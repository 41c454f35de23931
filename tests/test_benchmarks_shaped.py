"""benchmarks/shaped.py: its checkpoints are whole, load in transformers, and convert."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from qconvert.asked import Asked
from qconvert.checkpoint import open_checkpoint
from qconvert.formats.target import target_named
from qconvert.pipeline import convert

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
BLOCKS = 3
SMALL_SHARDS = 5_000_000


@pytest.fixture
def shaped(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import shaped

    return shaped


@pytest.fixture
def model(shaped: ModuleType, tmp_path: Path) -> Path:
    shape = shaped.shape_of("8B", blocks=BLOCKS, scale="tiny")
    folder: Path = shaped.write(tmp_path / "model", shape, shard_bytes=SMALL_SHARDS)
    return folder


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("8B", 8_030_261_248), ("70B", 70_553_706_496), ("405B", 405_853_388_800)],
)
def test_sizes_are_those_of_the_models(size: str, parameters: int, shaped: ModuleType) -> None:
    """The counts that the models' cards give, in bfloat16."""
    assert shaped.shape_of(size).nbytes == 2 * parameters


@pytest.mark.parametrize("size", ["8B", "70B", "405B"])
def test_tensors_are_those_of_the_class_in_transformers(size: str, shaped: ModuleType) -> None:
    shape = shaped.shape_of(size, blocks=2)
    config = shaped._config(shape)
    kind = config.pop("model_type")
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **config))
    meant = {name: tuple(one.shape) for name, one in empty.named_parameters()}
    assert dict(shape.tensors()) == meant


def test_activations_are_finite_and_of_a_usual_size(model: Path) -> None:
    loaded, told = AutoModelForCausalLM.from_pretrained(
        model, dtype="bfloat16", local_files_only=True, output_loading_info=True
    )
    assert not any(told.values())
    tokens = AutoTokenizer.from_pretrained(model)("the history of the town", return_tensors="pt")
    assert 0 < tokens["input_ids"].shape[1] < len("the history of the town")
    with torch.inference_mode():
        logits = loaded(tokens["input_ids"]).logits.float()
    assert torch.isfinite(logits).all()
    assert 0.1 < logits.std() < 10


def test_no_two_rows_or_matrices_are_alike(model: Path, shaped: ModuleType) -> None:
    source = open_checkpoint(model)
    matrices = [one for one in source.tensors if one.block == 1 and len(one.shape) == 2]
    first = [source.rows(one, 0, 1).reshape(-1)[:64].tobytes() for one in matrices]
    assert len(set(first)) == len(matrices) == 7
    rows = source.rows(matrices[0], 0, matrices[0].shape[0])
    assert np.linalg.matrix_rank(rows) == min(rows.shape)
    assert rows.std() == pytest.approx(shaped.DEVIATION, rel=0.02)


def test_shards_are_small_and_the_index_is_of_them(model: Path) -> None:
    index = json.loads((model / "model.safetensors.index.json").read_text("utf-8"))
    shards = sorted(path.name for path in model.glob("*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == shards
    assert len(shards) > 2
    assert all(path.stat().st_size < SMALL_SHARDS + 4096 for path in model.glob("*.safetensors"))
    assert index["metadata"]["total_size"] == open_bytes(model)


def open_bytes(model: Path) -> int:
    return sum(2 * int(np.prod(one.shape)) for one in open_checkpoint(model).tensors)


def test_the_same_arguments_give_the_same_bytes(
    model: Path, shaped: ModuleType, tmp_path: Path
) -> None:
    shape = shaped.shape_of("8B", blocks=BLOCKS, scale="tiny")
    again = shaped.write(tmp_path / "again", shape, shard_bytes=SMALL_SHARDS)
    other = shaped.write(tmp_path / "other", shape, shard_bytes=SMALL_SHARDS, seed=1)
    names = sorted(path.name for path in model.iterdir())
    assert sorted(path.name for path in again.iterdir()) == names
    assert all((again / name).read_bytes() == (model / name).read_bytes() for name in names)
    assert any((other / name).read_bytes() != (model / name).read_bytes() for name in names)


@pytest.mark.parametrize("target", ["gguf", "vllm"])
def test_it_converts(target: str, model: Path, tmp_path: Path) -> None:
    convert(model, target, out=tmp_path / "out.gguf", asked=Asked(method="rtn"), threads=1)
    reader = target_named(target).reader(tmp_path / "out.gguf")
    name = "model.layers.1.mlp.down_proj.weight"
    source = open_checkpoint(model)
    weight = next(one for one in source.tensors if one.name == name)
    was = source.rows(weight, 0, weight.shape[0])
    off = reader.weights(source)[name] - was
    assert 0.001 < (off**2).mean() / (was**2).mean() < 0.03


def test_the_command_says_what_it_wrote(shaped: ModuleType, tmp_path: Path) -> None:
    words = ["405B", str(tmp_path / "model"), "--blocks", "1", "--scale", "tiny"]
    done = CliRunner().invoke(shaped.main, words)
    assert done.exit_code == 0, done.output
    line = json.loads(done.output)
    assert line["blocks"] == 1
    assert line["bytes"] == open_bytes(tmp_path / "model")
    again = CliRunner().invoke(shaped.main, words)
    assert again.exit_code == 2
    assert "exists" in again.output
