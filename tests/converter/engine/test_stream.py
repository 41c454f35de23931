"""Block by block equals the whole model, for every family; statistics equal their definitions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from qconvert.checkpoint import open_checkpoint
from qconvert.engine.block import READS
from qconvert.engine.reading import read_block
from qconvert.engine.skeleton import skeleton
from qconvert.engine.stream import Stream, workers
from qconvert.engine.sums import Sums
from qconvert.runtimes import reference

CPU = torch.device("cpu")
TINY = Callable[..., Path]
FAMILIES = (
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "gpt_neox",
    "gpt2", "smollm3",
)  # fmt: skip


def tokens(rows: int = 3, length: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(5, 500, (rows, length)).astype(np.int32)


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_in_a_row_are_the_model(tiny_model: TINY, family: str) -> None:
    folder = tiny_model(family)
    source = open_checkpoint(folder)
    model = reference.from_folder(folder, threads=1).model
    ids = tokens()
    with torch.inference_mode():
        states = model(torch.from_numpy(ids.astype(np.int64)), output_hidden_states=True)
    bones = skeleton(source, CPU)
    with workers(2, CPU) as pool:
        hidden, calls = bones.embed(ids)
        stream = Stream(bones, calls, pool)
        assert torch.allclose(hidden, states.hidden_states[0], atol=1e-6)
        for index in range(len(calls)):
            behind = torch.empty_like(hidden)
            stream.forward(read_block(source, index, CPU), hidden, behind)
            hidden = behind
            if index < len(calls) - 1:  # the last state of transformers has passed the norm
                assert torch.allclose(hidden, states.hidden_states[index + 1], atol=2e-4)
    norm = model.get_submodule(_final_norm(source))
    with torch.inference_mode():
        logits = model.get_output_embeddings()(norm(hidden))
    cap = getattr(model.config, "final_logit_softcapping", None)
    if cap:
        logits = torch.tanh(logits / cap) * cap
    assert torch.allclose(logits, states.logits, atol=2e-3)


def _final_norm(source: object) -> str:
    from qconvert.models import FAMILIES as FACTS

    family = FACTS[source.model_type]  # type: ignore[attr-defined]
    return family.prefix + family.after[0].path


def test_nothing_of_a_block_stays_loaded(tiny_model: TINY) -> None:
    source = open_checkpoint(tiny_model("llama"))
    bones = skeleton(source, CPU)
    with bones.loaded(read_block(source, 1, CPU)) as module:
        assert not any(p.is_meta for p in module.parameters())
    assert all(p.is_meta for p in bones.base.parameters())


@pytest.mark.parametrize("threads", [1, 2])
def test_sums_are_their_definition(tiny_model: TINY, threads: int) -> None:
    source = open_checkpoint(tiny_model("llama"))
    bones = skeleton(source, CPU)
    ids = tokens(4, 32)
    with workers(threads, CPU) as pool:
        hidden, calls = bones.embed(ids)
        stream = Stream(bones, calls, pool)
        block = read_block(source, 0, CPU)
        names = sorted({READS[role] for role in block.linears})
        seen: dict[str, list[torch.Tensor]] = {name: [] for name in names}
        sums = {name: Sums(block.inputs[name], CPU) for name in names}
        for wave in stream.captured(block, hidden, names):
            for name, x in wave.inputs.items():
                seen[name].append(x)
                sums[name].add(x, pool)
    for name in names:
        x = torch.cat(seen[name]).double()
        found = sums[name].moments("here")
        second = x.t() @ x / len(x)
        assert found.tokens == len(x) == ids.size
        assert torch.allclose(found.second.double(), second, rtol=1e-4, atol=1e-5)
        assert torch.equal(found.second, found.second.t())
        assert torch.allclose(found.mean_abs.double(), x.abs().mean(0), rtol=1e-4)
        assert torch.allclose(found.fourth.double(), x.pow(4).mean(0), rtol=1e-3)
        assert torch.equal(found.largest, x.abs().amax(0).float())


def test_bits_do_not_depend_on_threads(tiny_model: TINY) -> None:
    source = open_checkpoint(tiny_model("llama"))
    bones = skeleton(source, CPU)
    ids = tokens(5, 48)
    found = []
    for threads in (1, 2, 3):
        with workers(threads, CPU) as pool:
            hidden, calls = bones.embed(ids)
            block = read_block(source, 0, CPU)
            sums = Sums(block.inputs["ffn_mid"], CPU)
            for wave in Stream(bones, calls, pool).captured(block, hidden, ["ffn_mid"]):
                sums.add(wave.inputs["ffn_mid"], pool)
            found.append(sums.moments("here").second)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_activations_that_are_not_finite_are_named() -> None:
    from qconvert.formats.refusal import Refused

    with workers(1, CPU) as pool:
        sums = Sums(4, CPU)
        x = torch.ones(3, 4)
        x[1, 2] = torch.inf
        sums.add(x, pool)
        with pytest.raises(Refused, match="block 3, ffn_mid"):
            sums.moments("block 3, ffn_mid")
