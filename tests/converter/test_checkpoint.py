"""Reading a folder: what is stored comes back; what is wrong is refused, all of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qconvert.checkpoint import Checkpoint, open_checkpoint
from qconvert.formats.refusal import Refused

Tiny = Callable[..., Path]
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi3", "gpt_neox", "gpt2")


def load(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def save(folder: Path, tensors: Mapping[str, Any]) -> None:
    from safetensors.torch import save_file

    save_file({name: value.contiguous() for name, value in tensors.items()}, weights(folder))


def weights(folder: Path) -> Path:
    return folder / "model.safetensors"


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refusal(folder: Path) -> str:
    with pytest.raises(Refused) as caught:
        open_checkpoint(folder)
    return str(caught.value)


def whole(source: Checkpoint, name: str, step: int = 100) -> np.ndarray[Any, Any]:
    tensor = next(tensor for tensor in source.tensors if tensor.name == name)
    if len(tensor.shape) == 1:
        return source.rows(tensor, 0, 1)
    count = tensor.shape[0]
    return np.concatenate(
        [source.rows(tensor, at, min(at + step, count)) for at in range(0, count, step)]
    )


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_comes_back(family: str, dtype: str, tiny_model: Tiny) -> None:
    folder = tiny_model(family, dtype=dtype)
    source, stored = open_checkpoint(folder), load(folder)
    assert source.model_type == family
    assert {tensor.name for tensor in source.tensors} == set(stored)
    for tensor in source.tensors:
        want = stored[tensor.name].float().numpy()
        if family == "gpt2" and "c_" in tensor.name and tensor.part == "weight":
            want = want.T
        got = whole(source, tensor.name)
        assert got.dtype == np.float32
        assert got.shape == tensor.shape
        np.testing.assert_array_equal(got, want)


def test_tensors_are_in_the_order_of_computation(tiny_model: Tiny) -> None:
    tensors = open_checkpoint(tiny_model("qwen3")).tensors
    blocks = [tensor.block for tensor in tensors]
    assert blocks == [None] + [0] * 11 + [1] * 11 + [None] * 2
    assert [tensor.role for tensor in tensors[-2:]] == ["final_norm", "head"]


def test_shards_are_read_as_one_file_is(tiny_model: Tiny) -> None:
    one, many = tiny_model("llama"), tiny_model("llama", shard_size="300KB")
    assert len(list(many.glob("*.safetensors"))) > 3
    a, b = open_checkpoint(one), open_checkpoint(many)
    assert a.tensors == b.tensors
    for tensor in a.tensors:
        np.testing.assert_array_equal(whole(a, tensor.name), whole(b, tensor.name))
    assert len(b.files) > 3


@pytest.mark.parametrize(
    ("family", "prefix"), [("llama", "model."), ("gpt2", "transformer."), ("gpt_neox", "gpt_neox.")]
)
def test_names_without_the_base_prefix(family: str, prefix: str, tiny_copy: Tiny) -> None:
    folder = tiny_copy(family)
    before = everything(open_checkpoint(folder))
    save(folder, {name.removeprefix(prefix): value for name, value in load(folder).items()})
    assert_same(everything(open_checkpoint(folder)), before)


@pytest.mark.parametrize("prefix", ["language_model.", "model.language_model."])
def test_the_text_model_is_lifted_out_of_a_multimodal_one(prefix: str, tiny_copy: Tiny) -> None:
    import torch

    folder = tiny_copy("gemma3_text", num_attention_heads=8, num_key_value_heads=4, head_dim=32)
    plain = open_checkpoint(folder)
    before = everything(plain)
    bare = "model." if prefix.startswith("model.") else ""
    inner = {prefix + name.removeprefix(bare): value for name, value in load(folder).items()}
    tower = {"vision_tower.vision_model.encoder.x": torch.zeros(2, 2, dtype=torch.int8)}
    save(folder, {**inner, **tower})
    text = json.loads((folder / "config.json").read_text())
    # A real text_config leaves out what is the class's default.
    for name in ("tie_word_embeddings", "num_attention_heads", "num_key_value_heads"):
        text.pop(name)
    outer = {"model_type": "gemma3", "text_config": text, "eos_token_id": [1, 106]}
    (folder / "config.json").write_text(json.dumps(outer))
    lifted = open_checkpoint(folder)
    assert_same(everything(lifted), before)
    assert lifted.model_type == "gemma3_text"
    assert lifted.tied
    assert lifted.config["num_attention_heads"] == 8
    assert lifted.config["eos_token_id"] == [1, 106]
    assert lifted.tensors == plain.tensors
    assert "vision_tower" in " ".join(lifted.notes)


def test_gpt2_sizes_have_their_usual_names_too(tiny_model: Tiny) -> None:
    config = open_checkpoint(tiny_model("gpt2", n_inner=512)).config
    assert config["hidden_size"] == config["n_embd"] == 256
    assert config["intermediate_size"] == 512


def test_masks_and_rotary_tables_are_passed_over(tiny_copy: Tiny) -> None:
    import torch

    for family, name in (
        ("gpt2", "transformer.h.0.attn.bias"),
        ("gpt2", "h.1.attn.masked_bias"),
        ("gpt_neox", "gpt_neox.layers.0.attention.bias"),
        ("llama", "model.layers.1.self_attn.rotary_emb.inv_freq"),
    ):
        folder = tiny_copy(family)
        before = open_checkpoint(folder).tensors
        save(folder, {**load(folder), name: torch.ones(1, 1, 4, 4, dtype=torch.bool)})
        assert open_checkpoint(folder).tensors == before


# --- the head and the embedding


def test_tied_head_stored_twice_is_tied(tiny_copy: Tiny) -> None:
    folder = tiny_copy("llama", tie_word_embeddings=True)
    assert open_checkpoint(folder).tied
    stored = load(folder)
    save(folder, {**stored, "lm_head.weight": stored["model.embed_tokens.weight"].clone()})
    source = open_checkpoint(folder)
    assert source.tied
    assert source.config["tie_word_embeddings"] is True
    assert all(tensor.role != "head" for tensor in source.tensors)


def test_head_that_differs_from_its_embedding_is_kept(tiny_copy: Tiny) -> None:
    folder = tiny_copy("llama", tie_word_embeddings=True)
    stored = load(folder)
    head = stored["model.embed_tokens.weight"].clone()
    head[-1, -1] += 1
    save(folder, {**stored, "lm_head.weight": head})
    source = open_checkpoint(folder)
    assert not source.tied
    assert source.config["tie_word_embeddings"] is False
    assert "differs" in source.notes[0]
    np.testing.assert_array_equal(whole(source, "lm_head.weight"), head.numpy())


def test_untied_without_a_head_is_refused(tiny_copy: Tiny) -> None:
    folder = tiny_copy("llama")
    save(folder, {name: value for name, value in load(folder).items() if "lm_head" not in name})
    text = refusal(folder)
    assert "lm_head.weight" in text
    assert "tie_word_embeddings" in text


# --- bad input


def test_no_such_folder_and_not_a_folder(tmp_path: Path) -> None:
    assert "no such folder" in refusal(tmp_path / "none")
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    assert "is not a folder" in refusal(file)


def test_faults_of_config_and_weights_are_told_together(tmp_path: Path) -> None:
    text = refusal(tmp_path)
    assert "no config.json" in text
    assert "no weights" in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "config.json is not JSON"),
        ("[]", "not a JSON object"),
        ("[" * 100_000, "config.json is not JSON"),
        ("{}", "names no model_type"),
        ('{"model_type": "mamba"}', "unknown architecture: model_type 'mamba'"),
        ('{"model_type": "gemma3"}', "without a text_config"),
        ('{"model_type": "llama"}', "hidden_size is None"),
    ],
)
def test_bad_config(content: str, words: str, tiny_copy: Tiny) -> None:
    folder = tiny_copy("llama")
    (folder / "config.json").write_text(content)
    assert words in refusal(folder)


def test_an_unknown_architecture_is_told_which_are_known(tiny_copy: Tiny) -> None:
    folder = tiny_copy("llama")
    edit_config(folder, model_type="mamba")
    assert "gemma3, gemma3_text, gpt2" in refusal(folder)


def test_quantized_checkpoint(tiny_copy: Tiny) -> None:
    folder = tiny_copy("llama")
    edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    assert "already quantized (gptq)" in refusal(folder)


def test_pickles_are_not_opened(tiny_copy: Tiny) -> None:
    folder = tiny_copy("llama")
    weights(folder).rename(folder / "pytorch_model.bin")
    text = refusal(folder)
    assert "pickle (pytorch_model.bin)" in text
    assert "save_pretrained" in text


def test_missing_unexpected_and_misshapen_tensors_are_all_told(tiny_copy: Tiny) -> None:
    folder = tiny_copy("llama")
    stored = load(folder)
    del stored["model.layers.1.mlp.up_proj.weight"]
    stored["model.layers.0.self_attn.q_proj.bias"] = stored["model.norm.weight"].clone()
    stored["model.layers.0.mlp.down_proj.weight"] = stored["model.embed_tokens.weight"].clone()
    stored["model.layers.1.mlp.gate_proj.weight"] = stored[
        "model.layers.1.mlp.gate_proj.weight"
    ].double()
    save(folder, stored)
    text = refusal(folder)
    assert "missing from the checkpoint: model.layers.1.mlp.up_proj.weight" in text
    assert "as config.json describes it: model.layers.0.self_attn.q_proj.bias" in text
    assert (
        "model.layers.0.mlp.down_proj.weight has the shape [512, 256]; "
        "config.json asks for [256, 512]" in text
    )
    assert "model.layers.1.mlp.gate_proj.weight is stored as F64" in text


def test_depth_that_disagrees_with_config(tiny_copy: Tiny) -> None:
    folder = tiny_copy("llama")
    edit_config(folder, num_hidden_layers=1)
    assert "num_hidden_layers (1)" in refusal(folder)
    edit_config(folder, num_hidden_layers=3)
    assert "and 3 more" in refusal(folder)


def test_one_tensor_under_two_names(tiny_copy: Tiny) -> None:
    folder = tiny_copy("llama")
    stored = load(folder)
    save(folder, {**stored, "norm.weight": stored["model.norm.weight"].clone()})
    assert "are the same tensor" in refusal(folder)


@pytest.mark.parametrize(("value", "word"), [(float("nan"), "NaN"), (float("-inf"), "infinite")])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_nan_and_infinity_are_refused_by_name(
    dtype: str, value: float, word: str, tiny_copy: Tiny
) -> None:
    folder = tiny_copy("llama", dtype=dtype)
    stored = load(folder)
    stored["model.layers.1.mlp.up_proj.weight"][300, 7] = value
    save(folder, stored)
    source = open_checkpoint(folder)
    with pytest.raises(Refused, match=rf"model\.layers\.1\.mlp\.up_proj\.weight holds {word}"):
        whole(source, "model.layers.1.mlp.up_proj.weight")


def test_large_values_whose_sum_overflows_are_fine(tiny_copy: Tiny) -> None:
    folder = tiny_copy("llama")
    stored = load(folder)
    stored["model.norm.weight"][:] = 3e38
    save(folder, stored)
    assert (whole(open_checkpoint(folder), "model.norm.weight") == np.float32(3e38)).all()


def test_file_that_shrinks_while_it_is_read(tiny_copy: Tiny) -> None:
    folder = tiny_copy("llama")
    source = open_checkpoint(folder)
    weights(folder).write_bytes(weights(folder).read_bytes()[:5000])
    with pytest.raises(Refused, match="became shorter"):
        whole(source, "model.norm.weight")


# --- shards


@pytest.fixture
def sharded(tiny_copy: Tiny) -> Path:
    return tiny_copy("llama", shard_size="300KB")


def index(folder: Path) -> Path:
    return folder / "model.safetensors.index.json"


def test_shards_that_are_missing(sharded: Path) -> None:
    shards = sorted(sharded.glob("*.safetensors"))
    shards[1].unlink()
    shards[2].unlink()
    text = refusal(sharded)
    assert f"{shards[1].name} is missing" in text
    assert f"{shards[2].name} is missing" in text


def test_tensor_that_is_not_in_its_shard(sharded: Path) -> None:
    parsed = json.loads(index(sharded).read_text())
    name, shard = next(iter(parsed["weight_map"].items()))
    other = next(s for s in parsed["weight_map"].values() if s != shard)
    parsed["weight_map"][name] = other
    index(sharded).write_text(json.dumps(parsed))
    assert f"{other}: {name} is missing" in refusal(sharded)


def test_tensor_in_two_shards(sharded: Path) -> None:
    first, second, *_ = sorted(sharded.glob("*.safetensors"))
    shutil.copy(first, second)
    assert "is stored in another shard too" in refusal(sharded)


def test_index_cannot_lead_out_of_the_folder(sharded: Path) -> None:
    index(sharded).write_text(json.dumps({"weight_map": {"a": "../other/model.safetensors"}}))
    assert "outside the folder" in refusal(sharded)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', "no"])
def test_bad_index(content: str, sharded: Path) -> None:
    index(sharded).write_text(content)
    assert "index.json" in refusal(sharded)


def everything(source: Checkpoint) -> dict[str, np.ndarray[Any, Any]]:
    return {tensor.name: whole(source, tensor.name) for tensor in source.tensors}


def assert_same(
    got: Mapping[str, np.ndarray[Any, Any]], want: Mapping[str, np.ndarray[Any, Any]]
) -> None:
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])


def test_a_fault_of_every_block_is_told_once(tiny_copy: Tiny) -> None:
    folder = tiny_copy("llama")
    config = json.loads((folder / "config.json").read_text())
    config["intermediate_size"] *= 2
    (folder / "config.json").write_text(json.dumps(config))
    text = refusal(folder)
    assert text.count("config.json asks for") == 3
    assert "model.layers.*.mlp.gate_proj.weight (2 tensors) has the shape" in text
