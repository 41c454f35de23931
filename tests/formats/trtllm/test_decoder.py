"""What we write for TensorRT-LLM, decoded by code that shares nothing with ours, is what we say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from qconvert.checkpoint import open_checkpoint
from qconvert.formats.target import target_named
from qconvert.runtimes import reference
from qconvert.runtimes.noise import rounded, rounding_told

Write = Callable[..., Path]
TOKENS = (torch.arange(24)[None] * 37 + 11) % 512
FLOAT_NOISE = 1e-6
"""Relative, of logits in float32. Measured on this machine: 0, the same to the bit."""
QKV = tuple(f"self_attn.{one}_proj" for one in "qkv")
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
TIED = (("tie_word_embeddings", True),)
SCHEMES = {
    "w4a16-awq": "W4A16_AWQ", "w4a8-awq": "W4A8_AWQ", "fp8": "FP8",
    "fp8-channel": "FP8_PER_CHANNEL_PER_TOKEN", "fp8-block": "FP8_PB_WO", "nvfp4": "NVFP4",
    "nvfp4a16": "W4A16_NVFP4", "w8a16": "W8A16", "w4a16": "W4A16",
}  # fmt: skip
EDGE = {"w4a16-awq": "W4A16_AWQ", "fp8": "FP8", "nvfp4": "NVFP4", "w8a8-sq": "W8A8_SQ_PER_CHANNEL"}
EVERY = [("trtllm", *one) for one in SCHEMES.items()] + [("edge-llm", *one) for one in EDGE.items()]
ROUND = ("w4a8-awq", "fp8", "fp8-channel", "fp8-block", "nvfp4", "w8a8-sq")
"""Schemes whose activations are rounded."""


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def proven(decoder: Any, simulate: Any) -> Callable[..., Any]:
    """`proven(folder, model, to)`: both decodings of `folder` agree; what the other one found."""

    def prove(folder: Path, model: Path, to: str = "trtllm") -> Any:
        theirs = decoder.decode(folder)
        source, reader = open_checkpoint(model), target_named(to).reader(folder)
        weights = reader.weights(source)
        for name in weights:
            found = theirs.state[name].numpy()
            np.testing.assert_array_equal(weights[name], found, err_msg=name)
        ours = reference.from_weights(source, weights, threads=1)
        told = rounding_told(reader, source)
        assert set(told.inputs) == {f"{module}.weight" for module in theirs.rounding}
        plain = ours.logits(TOKENS[0].tolist())
        with rounded(ours, told):
            within = ours.logits(TOKENS[0].tolist())
        near(simulate.logits(theirs, TOKENS, rounding=False)[0].numpy(), plain)
        near(simulate.logits(theirs, TOKENS)[0].numpy(), within)
        assert (distance(within, plain) > 1e-3) == bool(theirs.rounding or theirs.cache)
        return theirs

    return prove


def distance(found: Any, expected: Any) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def near(found: Any, expected: Any) -> None:
    assert distance(found, expected) <= FLOAT_NOISE


def numbers(folder: Path, part: str) -> dict[str, torch.Tensor]:
    """Module -> what is stored of it under this last name."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                module, _, last = name.rpartition(".")
                if last == part:
                    found[module] = file.get_tensor(name)
    return found


def alike(found: Mapping[str, torch.Tensor], members: tuple[str, ...]) -> bool:
    starts = sorted({name.split(".self_attn")[0].split(".mlp")[0] for name in found})
    assert starts == ["model.layers.0", "model.layers.1"]
    return all(
        torch.equal(found[f"{start}.{one}"], found[f"{start}.{members[0]}"])
        for start in starts
        for one in members
    )


@pytest.mark.parametrize(("to", "scheme", "algorithm"), EVERY)
def test_every_scheme(
    to: str, scheme: str, algorithm: str, written: Write, source_of: Write, proven: Any
) -> None:
    found = proven(written(scheme, to), source_of(), to)
    assert len(found.algorithms) == 14
    assert {one.upper() for one in found.algorithms.values()} == {algorithm}
    assert len(found.rounding) == (14 if scheme in ROUND else 0)


@pytest.mark.parametrize(("family", "config", "schemes"), [
    ("qwen3", (), ("w4a8-awq", "fp8", "nvfp4")), ("qwen2", (), ("w4a8-awq", "fp8", "nvfp4")),
    ("llama", TIED, ("w4a8-awq", "fp8", "nvfp4")), ("phi3", (), ("fp8", "nvfp4")),
    ("gemma3_text", (), ("w4a8-awq", "nvfp4")),
])  # fmt: skip
def test_every_family(
    family: str, config: Any, schemes: tuple[str, ...], written: Write, source_of: Write,
    proven: Any,
) -> None:  # fmt: skip
    """Norms of q and k, biases of q, k and v, a tied head, q, k and v stored as one."""
    for scheme in schemes:
        found = proven(written(scheme, family=family, config=config), source_of(family, config))
        ends = {name.rpartition(".")[2] for name in found.state}
        assert ("bias" in ends) == (family == "qwen2")
        tied = config == TIED or family == "gemma3_text"
        assert ("lm_head.weight" in found.state) is not tied


@pytest.mark.parametrize("scheme", ["w4a16-awq", "w4a8-awq", "fp8", "nvfp4"])
def test_calibrated(scheme: str, written: Write, source_of: Write, proven: Any) -> None:
    """Error of rounding compensated: other codes than to nearest."""
    folder = written(scheme, method="gptq")
    found, plain = proven(folder, source_of()), numbers(written(scheme), "weight")
    codes = numbers(folder, "weight")
    assert all(not torch.equal(codes[name].view(torch.uint8), plain[name].view(torch.uint8))
               for name in found.algorithms)  # fmt: skip


@pytest.mark.parametrize("scheme", ["w4a16-awq", "w4a8-awq"])
def test_scales_of_columns(scheme: str, written: Write, source_of: Write, proven: Any) -> None:
    """Those of q, k, v and of gate, up are in the norms; o and down have vectors of their own."""
    found = proven(written(scheme, method="awq+nearest"), source_of())
    assert {name.rpartition(".")[2] for name in found.columns} == {"o_proj", "down_proj"}
    assert len(found.columns) == 4
    moved = [name for name, vector in found.columns.items() if not bool((vector == 1).all())]
    assert moved
    stored = numbers(written(scheme, method="awq+nearest"), "pre_quant_scale")
    assert all(one.dtype == torch.bfloat16 for one in stored.values())
    assert all(bool((one > 0).all()) for one in stored.values())
    plain = proven(written(scheme), source_of())
    assert all(bool((vector == 1).all()) for vector in plain.columns.values())


@pytest.mark.parametrize(("scheme", "kv"), [("fp8", "fp8"), ("fp8", "nvfp4"), ("nvfp4", "fp8"),
                                            ("nvfp4", "nvfp4")])  # fmt: skip
def test_caches(scheme: str, kv: str, written: Write, source_of: Write, proven: Any) -> None:
    found = proven(written(scheme, kv=kv), source_of())
    assert found.cache_kind == kv.upper()
    assert set(found.cache) == {0, 1}
    other = proven(written(scheme, kv="fp8"), source_of())
    assert found.cache == other.cache  # amax / 448 in both: see TensorRT-LLM's linear.py


@pytest.mark.parametrize("method", ["rtn", "gptq"])
@pytest.mark.parametrize("scheme", ["fp8", "nvfp4", "w4a8-awq"])
def test_joined_linears_share_their_scales(scheme: str, method: str, written: Write) -> None:
    folder = written(scheme, method=method)
    shared = {"fp8": "weight_scale"}.get(scheme, "weight_scale_2")
    for part in ("input_scale", shared):
        found = numbers(folder, part)
        assert len(found) == 14
        assert alike(found, QKV)
        assert alike(found, GATE_UP)
        assert all(one.dtype == torch.float32 and one.shape == () for one in found.values())
    alone = numbers(folder, shared)
    assert len({one.item() for one in alone.values()}) > 1  # and not all linears


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_what_the_loader_casts_stays_exact(method: str, written: Write) -> None:
    """W4A16_AWQ casts scales to the model's type; W4A8_AWQ casts them to float16 and divides."""
    for scheme in ("w4a16-awq", "w4a16", "w8a16"):
        for scale in numbers(written(scheme, method=method), "weight_scale").values():
            assert torch.equal(scale.bfloat16().float(), scale)
            assert torch.equal(scale.half().float(), scale)
    folder = written("w4a8-awq", method=method)
    scales, divisors = numbers(folder, "weight_scale"), numbers(folder, "weight_scale_2")
    for name, scale in scales.items():
        half = scale.half()
        quotient = (half / divisors[name]).half()
        assert torch.equal(quotient.float() * divisors[name], scale)
        assert 8 * quotient.abs().max() <= 448  # what the product in FP8 can hold


def test_mixed_precision(written: Write, source_of: Write, proven: Any) -> None:
    layers = (
        ("*.0.*.o_proj", "fp8"), ("*.1.mlp.down_proj", "float"),
        ("*.self_attn.[qkv]_proj", "fp8-channel"),
    )  # fmt: skip
    found = proven(written("w4a16-awq", layers=layers), source_of())
    of = found.algorithms
    assert of["model.layers.0.self_attn.o_proj"] == "FP8"
    assert "model.layers.1.mlp.down_proj" not in of
    assert {of[f"model.layers.{layer}.{one}"] for layer in (0, 1) for one in QKV} == {
        "FP8_PER_CHANNEL_PER_TOKEN"
    }
    assert of["model.layers.0.mlp.down_proj"] == "W4A16_AWQ"


def test_groups_of_64(written: Write, source_of: Write, proven: Any) -> None:
    folder = written("w4a16-awq", group=64)
    proven(folder, source_of())
    assert {one.shape[1] for one in numbers(folder, "weight_scale").values()} == {4, 8}


def test_shards(decoder: Any, written: Write) -> None:
    whole, cut = written("w4a8-awq"), written("w4a8-awq", split_bytes=300_000)
    assert len(list(cut.glob("*.safetensors"))) > 2
    one, other = decoder.decode(whole), decoder.decode(cut)
    assert one.state.keys() == other.state.keys()
    assert all(torch.equal(one.state[name], other.state[name]) for name in one.state)


def test_the_decoder_is_strict(decoder: Any) -> None:
    """A byte that is read otherwise gives another weight, not the same one."""
    packed = torch.tensor([[0x2F]], dtype=torch.uint8)
    assert decoder.int4(packed).tolist() == [[-1.0], [2.0]]
    assert decoder.fp4(packed).tolist() == [[-6.0, 1.0]]
    scale = torch.ones(2, 1)
    parts = {"weight": packed.expand(1, 128).contiguous(), "weight_scale": scale}
    weight, rounding = decoder.int4_groups(parts, 128)
    assert rounding is None
    assert weight[:, 0].tolist() == [-1.0, 2.0]
    with pytest.raises(decoder.Wrong):
        decoder.int4_groups({**parts, "weight_scale": scale.bfloat16()}, 128)
    with pytest.raises(decoder.Wrong):
        decoder.int4_groups(parts, None)
