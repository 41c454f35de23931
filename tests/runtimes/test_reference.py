"""The reference takes decoded weights strictly, and then equals what transformers loads itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from qconvert.checkpoint import Checkpoint, open_checkpoint
from qconvert.formats.gguf.target import TARGET
from qconvert.formats.refusal import Refused
from qconvert.runtimes.noise import Rounding, rounded
from qconvert.runtimes.reference import from_folder, from_weights

TOKENS = [5, 77, 300, 5, 12, 401, 9, 33]


def stored(folder: Path) -> dict[str, NDArray[np.float32]]:
    return dict(load_file(folder / "model.safetensors"))


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text", "phi3", "gpt_neox", "gpt2"])
def test_the_stored_weights_give_the_source_s_logits(
    tiny_model: Callable[..., Path], family: str
) -> None:
    folder = tiny_model(family)
    names: list[str] = []
    model = from_weights(
        open_checkpoint(folder),
        stored(folder),
        threads=1,
        seen=lambda name, value: names.append(name),
    )
    expected = from_folder(folder, threads=1).logits(TOKENS)
    assert expected.shape == (8, 512)
    np.testing.assert_array_equal(model.logits(TOKENS), expected)
    assert sorted(names) == sorted(stored(folder))


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_an_unquantized_output_gives_the_source_s_logits(
    tiny_model: Callable[..., Path], tiny_gguf: Callable[..., Path], family: str
) -> None:
    source = open_checkpoint(tiny_model(family))
    reader = TARGET.reader(tiny_gguf("F32", family))
    found = from_weights(source, reader.weights(source), threads=1).logits(TOKENS)
    expected = from_folder(source.folder, threads=1).logits(TOKENS)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_every_missing_and_unknown_name_is_refused_at_once(source: Checkpoint) -> None:
    weights = stored(source.folder)
    weights["model.extra.weight"] = weights.pop("model.norm.weight")
    del weights["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(Refused) as raised:
        from_weights(source, weights, threads=1)
    for name in ("model.extra", "model.norm", "model.layers.1.mlp.up_proj"):
        assert name in str(raised.value)


def test_another_shape_is_refused(source: Checkpoint) -> None:
    weights = stored(source.folder)
    weights["lm_head.weight"] = weights["lm_head.weight"][:, :128]
    with pytest.raises(Refused, match="lm_head"):
        from_weights(source, weights, threads=1)


def test_the_given_arrays_are_used_whatever_their_memory(source: Checkpoint) -> None:
    weights = {name: np.asfortranarray(value) for name, value in stored(source.folder).items()}
    for value in weights.values():
        value.setflags(write=False)
    found = from_weights(source, weights, threads=1).logits(TOKENS)
    np.testing.assert_array_equal(found, from_folder(source.folder, threads=1).logits(TOKENS))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
def test_a_tied_head_may_be_given_values_of_its_own(
    tiny_model: Callable[..., Path], family: str
) -> None:
    tied = open_checkpoint(tiny_model(family, tie_word_embeddings=True))
    assert tied.tied
    untied = tiny_model(family, tie_word_embeddings=False, seed=1)
    weights = {**stored(tied.folder), "lm_head.weight": stored(untied)["lm_head.weight"]}
    model = from_weights(tied, weights, threads=1)
    before = from_weights(tied, stored(tied.folder), threads=1)
    hidden = before.model.model(torch.tensor([TOKENS]))[0][0].detach().numpy()
    np.testing.assert_allclose(
        model.logits(TOKENS), hidden @ weights["lm_head.weight"].T, rtol=1e-4, atol=1e-4
    )
    assert np.abs(model.logits(TOKENS) - before.logits(TOKENS)).max() > 0.1


@pytest.mark.parametrize(
    "family", ["llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi3", "gpt_neox", "gpt2"]
)
def test_blocks_are_what_each_gives_to_the_next(
    tiny_model: Callable[..., Path], family: str
) -> None:
    """The embedding's output changed by them; transformers' own record, but for the last, which it
    keeps behind the final norm."""
    model = from_folder(tiny_model(family), threads=1)
    logits, found = model.logits_and_blocks(TOKENS)
    np.testing.assert_array_equal(logits, model.logits(TOKENS))
    np.testing.assert_array_equal(found, model.blocks(TOKENS))
    with torch.inference_mode():
        told = model.model(torch.tensor([TOKENS]), output_hidden_states=True, use_cache=False)
    assert found.shape == (2, 8, 256)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], told.hidden_states[1][0].numpy(), atol=1e-5)
    assert np.abs(found[1] - found[0]).max() > 0.1
    norm = next(module for module in list(model.model.base_model.children())[::-1] if
                "Norm" in type(module).__name__)  # fmt: skip
    last = norm(torch.from_numpy(found[1])).detach().numpy()
    np.testing.assert_allclose(last, told.hidden_states[-1][0].numpy(), atol=1e-5)


def test_rounded_blocks_are_what_a_rounding_runtime_gives(source: Checkpoint) -> None:
    model = from_folder(source.folder, threads=1)
    plain = model.blocks(TOKENS)
    with rounded(model, Rounding("bfloat16", everywhere=True)):
        found = model.blocks(TOKENS)
    assert 1e-4 < np.linalg.norm(found - plain) / np.linalg.norm(plain) < 1e-2
    np.testing.assert_array_equal(torch.from_numpy(found).bfloat16().float().numpy(), found)
    np.testing.assert_array_equal(model.blocks(TOKENS), plain)


def test_a_model_without_a_list_of_blocks_is_not_looked_into(source: Checkpoint) -> None:
    model = from_folder(source.folder, threads=1)
    model.model.config.num_hidden_layers = 3
    with pytest.raises(ValueError, match="0 of 3 blocks"):
        model.blocks(TOKENS)
