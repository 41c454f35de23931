"""Opened with care: whole folders give a checkpoint's weights back, damaged ones are told."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qconvert.formats.mlc.architectures import ARCHITECTURES
from qconvert.formats.mlc.target import TARGET
from qconvert.formats.refusal import Refused

from .conftest import Model, request, write


@pytest.fixture
def written(model: Callable[..., Model], tmp_path: Path) -> Callable[..., tuple[Model, Path]]:
    def build(model_type: str = "llama", *, scheme: str = "q4f16_1", **own: Any) -> Any:
        compatible = own.pop("compatible", False)
        source = model(model_type, **own)
        plan = TARGET.plan(source, request(type=scheme, compatible=compatible))
        return source, write(source, plan, tmp_path / f"out-{model_type}-{scheme}")

    return build


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("scheme", ["q4f16_1", "q3f16_0", "q4bf16_1", "q4f32_1"])
def test_weights_are_those_that_were_fitted(
    model_type: str, scheme: str, written: Callable[..., tuple[Model, Path]]
) -> None:
    source, folder = written(model_type, scheme=scheme)
    plan = TARGET.plan(source, request(type=scheme))
    assert TARGET.recognises(folder)
    weights = TARGET.reader(folder).weights(source)
    assert list(weights) == [one.name for one in source.tensors]
    limit = 2.0 ** (-8 if scheme == "q4bf16_1" else -10)
    for tensor in plan.tensors:
        if tensor.name not in weights:
            continue
        w, found = source.values[tensor.name], weights[tensor.name]
        assert found.shape == w.shape
        if tensor.grid is not None:
            np.testing.assert_array_equal(found, tensor.grid.decode(tensor.grid.quantize(w)))
        else:
            assert np.abs(found - w).max() <= limit * (np.abs(w).max() + 1)


def test_a_folder_of_mlcs_own_converter_is_read(
    written: Callable[..., tuple[Model, Path]],
) -> None:
    """Records in f32-to-bf16, and no index under the older name."""
    source, folder = written(scheme="q4f32_1", compatible=True)
    (folder / "ndarray-cache.json").unlink()
    grid = TARGET.plan(source, request(type="q4f32_1", compatible=True)).tensors[0].grid
    assert grid is not None
    weights = TARGET.reader(folder).weights(source)
    w = source.values["lm_head.weight"]
    np.testing.assert_array_equal(weights["lm_head.weight"], grid.decode(grid.quantize(w)))


def test_tensors_are_told_as_they_are_stored(written: Callable[..., tuple[Model, Path]]) -> None:
    _, folder = written()
    reader = TARGET.reader(folder)
    qkv = reader.tensors["model.layers.0.self_attn.qkv_proj.weight"]
    assert (qkv.shape, qkv.dtype) == ((160, 80), "q4f16_1")
    assert reader.decode(qkv.name).shape == (160, 80)
    stored = sum(one.nbytes for one in reader.tensors.values())
    assert stored == sum(file.stat().st_size for file in folder.glob("*.bin"))
    assert reader.metadata["model_type"] == "llama"
    assert TARGET.about(folder)["type"] == "q4f16_1"


def test_a_changed_byte_is_found_and_the_shard_named(
    written: Callable[..., tuple[Model, Path]],
) -> None:
    _, folder = written()
    shard = folder / "params_shard_0.bin"
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    with pytest.raises(Refused, match=r"params_shard_0.bin is damaged"):
        TARGET.reader(folder)
    shard.write_bytes(data[:-1])
    with pytest.raises(Refused, match=r"params_shard_0.bin has .* bytes, the index says"):
        TARGET.reader(folder)
    shard.unlink()
    with pytest.raises(Refused, match=r"params_shard_0.bin is missing"):
        TARGET.reader(folder)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "tensor-cache.json"
    index = json.loads(path.read_text())
    change(index["records"][0])
    path.write_text(json.dumps(index))
    (folder / "ndarray-cache.json").unlink(missing_ok=True)


FAULTS: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ("outside the folder", lambda shard: shard.update(dataPath="../params_shard_0.bin")),
    ("unknown format 'npz'", lambda shard: shard.update(format="npz")),
    ("is damaged", lambda shard: shard.pop("md5sum")),
    ("stored twice", lambda shard: shard["records"].append(shard["records"][0])),
    ("its shape wants", lambda shard: shard["records"][0].update(shape=[1, 2])),
    ("no name or shape", lambda shard: shard["records"][0].update(shape=[-1, 2])),
    ("reaches beyond", lambda shard: shard["records"][0].update(byteOffset=1 << 40)),
    ("which MLC's schemes have not", lambda shard: shard["records"][0].update(dtype="int8")),
    ("without its other half", lambda shard: shard["records"].pop(1)),
    ("scales are float32", lambda shard: shard["records"][1].update(
        dtype="float32", shape=[25, 3])),
    ("words and", lambda shard: shard["records"][0].update(shape=[25, 24])),
]  # fmt: skip


@pytest.mark.parametrize(("told", "change"), FAULTS, ids=[told for told, _ in FAULTS])
def test_a_wrong_index_is_refused(
    told: str, change: Callable[[dict[str, Any]], Any], written: Callable[..., tuple[Model, Path]]
) -> None:
    _, folder = written(num_hidden_layers=1)
    rewrite(folder, change)
    with pytest.raises(Refused, match=told):
        TARGET.reader(folder)


def test_two_indices_must_say_the_same(written: Callable[..., tuple[Model, Path]]) -> None:
    _, folder = written()
    (folder / "ndarray-cache.json").write_text("{}")
    with pytest.raises(Refused, match=r"ndarray-cache.json says something else"):
        TARGET.reader(folder)


def test_missing_and_foreign_tensors_are_named(
    written: Callable[..., tuple[Model, Path]], model: Callable[..., Model]
) -> None:
    _, folder = written("qwen2")
    reader = TARGET.reader(folder)
    with pytest.raises(Refused) as told:
        reader.weights(model("llama"))
    text = str(told.value)
    assert "the folder has model.layers.0.self_attn.c_attn.bias, which the model has not" in text
    with pytest.raises(Refused, match=r"embed_tokens.weight is \(50, 80\) in the folder"):
        reader.weights(model("qwen2", vocab_size=100))


def test_configurations_of_others_are_refused(written: Callable[..., tuple[Model, Path]]) -> None:
    _, folder = written()
    path = folder / "mlc-chat-config.json"
    config = json.loads(path.read_text())
    for key, value, told in (
        ("quantization", "q4f16_ft", "quantized with 'q4f16_ft'"),
        ("model_type", "rwkv", "model of type 'rwkv'"),
        ("model_config", {}, "hidden_size None"),
    ):
        path.write_text(json.dumps({**config, key: value}))
        with pytest.raises(Refused, match=told):
            TARGET.reader(folder)
    path.unlink()
    assert not TARGET.recognises(folder)
    with pytest.raises(Refused, match=r"no mlc-chat-config.json"):
        TARGET.reader(folder)


def test_md5_is_taken_of_the_whole_shard(written: Callable[..., tuple[Model, Path]]) -> None:
    """A folder whose index was made for other bytes opens once the sum is theirs."""
    _, folder = written()
    shard = folder / "params_shard_0.bin"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    rewrite(folder, lambda one: one.update(md5sum=hashlib.md5(data).hexdigest()))
    TARGET.reader(folder)
