"""Whole folders beside those that NVIDIA ModelOpt 0.47 made of the same model.

With `--trtllm-compatible` weights are rounded by ModelOpt's rules, and all that is stored has its
bytes, but for what is named here:

- the producer, which is ourselves;
- `group_size` in config.json, without which TensorRT-LLM would fail on it: ModelOpt has it in
  hf_quant_config.json alone;
- `rope_theta` and `torch_dtype` in config.json, for older readers;
- vectors of ones as `pre_quant_scale` of o_proj and down_proj, where ModelOpt's
  INT4_BLOCKWISE has none, and its folder could not be loaded;
- scales of activations and of the KV cache: ModelOpt runs the whole float model in bfloat16, we
  run float32, block after block behind those already quantized.

ModelOpt's AWQ and SmoothQuant choose scales of columns by a search of their own, so that codes
differ: of those the names, types, shapes and JSON are compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import qconvert
from qconvert.asked import Asked
from qconvert.formats.target import Request
from qconvert.pipeline import convert

LOGITS = Path(__file__).parents[2] / "data" / "trtllm" / "logits.safetensors"
TOKENS = torch.arange(16)[None]
COMPATIBLE = (("trtllm-compatible", "yes"),)
MEASURED = ("input_scale", "k_scale", "v_scale")
NEAR_BEHIND_FLOAT = 0.01
"""Relative, of scales of the first inputs, before which nothing is quantized: bfloat16 rounds by
0.4 %. Measured: 0.20 %."""
NEAR = {"fp8": 0.05, "nvfp4": 0.2}
"""Relative, of all scales that are measured. Measured: 2.7 %, 10.2 %."""


@dataclass(frozen=True)
class Pair:
    """How we are asked, and what ModelOpt's folder is called."""

    name: str
    scheme: str
    kv: str | None = None
    method: str = "rtn"
    to: str = "trtllm"
    logits: float = 0.0  # largest relative distance of our folder's logits to ModelOpt's own
    rounding: bool = True  # whether ModelOpt's simulation rounded activations

    @property
    def family(self) -> str:
        return self.name.partition("-")[0]


SAME = (
    Pair("llama-FP8_DEFAULT_CFG-FP8_KV_CFG", "fp8", "fp8", logits=0.08),
    Pair("qwen3-FP8_DEFAULT_CFG-FP8_KV_CFG", "fp8", "fp8", logits=0.1),
    Pair("llama-FP8_PER_CHANNEL_PER_TOKEN_CFG", "fp8-channel", logits=0.055),
    Pair("llama-FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG", "fp8-block", logits=0.008, rounding=False),
    Pair("llama-NVFP4_DEFAULT_CFG-FP8_KV_CFG", "nvfp4", "fp8"),
    Pair("llama-INT4_BLOCKWISE_WEIGHT_ONLY_CFG", "w4a16-awq", logits=0.02),
    Pair("llama-INT8_WEIGHT_ONLY_CFG", "w8a16", logits=0.008),
)
ALIKE = (
    Pair("llama-INT4_AWQ_CFG", "w4a16-awq", method="awq+nearest"),
    Pair("llama-W4A8_AWQ_BETA_CFG", "w4a8-awq", method="awq+nearest"),
    Pair("llama-INT8_SMOOTHQUANT_CFG", "w8a8-sq", method="smoothquant+nearest", to="edge-llm"),
)


@pytest.fixture(scope="module")
def ours(
    random_source: Callable[[str], Path], calibration: Path, tmp_path_factory: Any
) -> Callable[[Pair], Path]:
    known: dict[Pair, Path] = {}

    def write(pair: Pair) -> Path:
        if pair not in known:
            out = tmp_path_factory.mktemp("ours") / "out"
            own = COMPATIBLE if pair in SAME else ()
            request = Request(scheme=pair.scheme, kv=pair.kv, own=own)
            asked = Asked(method=pair.method, calib=str(calibration), calib_rows=16,
                          calib_length=32, compute="float32")  # fmt: skip
            convert(
                random_source(pair.family), pair.to, out=out, request=request, asked=asked,
                threads=1,
            )  # fmt: skip
            known[pair] = out
        return known[pair]

    return write


def digest(tensor: torch.Tensor) -> str:
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(data).hexdigest()[:32]


def tensors(folder: Path) -> Iterator[tuple[str, list[Any], torch.Tensor]]:
    """Name; type and shape as safetensors tells them; the tensor."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        for name in file.keys():
            place = file.get_slice(name)
            yield name, [place.get_dtype(), place.get_shape()], file.get_tensor(name)


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text("utf-8"))


def ones(pair: Pair) -> set[str]:
    """Names that we store and ModelOpt does not."""
    if "INT4_BLOCKWISE" not in pair.name:
        return set()
    return {f"model.layers.{layer}.{one}.pre_quant_scale"
            for layer in (0, 1) for one in ("self_attn.o_proj", "mlp.down_proj")}  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_model_is_the_one_that_modelopt_was_given(
    family: str, random_source: Callable[[str], Path], modelopt: Any
) -> None:
    """If another version of torch or transformers draws other numbers, nothing here holds."""
    expected = modelopt(f"{family}-source").tensors
    found = {name: [*head, digest(tensor)] for name, head, tensor in tensors(random_source(family))}
    assert found == expected


@pytest.mark.parametrize("pair", [*SAME, *ALIKE], ids=lambda pair: pair.name)
def test_names_types_and_shapes(pair: Pair, ours: Callable[[Pair], Path], modelopt: Any) -> None:
    expected = {name: one[:2] for name, one in modelopt(pair.name).tensors.items()}
    found = {name: head for name, head, _ in tensors(ours(pair))}
    assert found.keys() - expected.keys() == ones(pair)
    assert {name: found[name] for name in expected} == expected
    with safe_open(ours(pair) / "model.safetensors", "pt") as file:
        assert file.metadata() == modelopt(pair.name).metadata


@pytest.mark.parametrize("pair", SAME, ids=lambda pair: pair.name)
def test_bytes(pair: Pair, ours: Callable[[Pair], Path], modelopt: Any) -> None:
    expected = modelopt(pair.name).tensors
    compared, other = 0, []
    for name, _, tensor in tensors(ours(pair)):
        if name in ones(pair):
            assert bool((tensor == 1).all())
        elif name.rpartition(".")[2] not in MEASURED:
            compared += 1
            other += [name] * (digest(tensor) != expected[name][2])
    assert other == []
    measured = sum(name.rpartition(".")[2] in MEASURED for name in expected)
    assert compared == len(expected) - measured
    assert measured == {"fp8": 18, "nvfp4": 18}.get(pair.scheme, 0)


@pytest.mark.parametrize("pair", [one for one in SAME if one.kv], ids=lambda pair: pair.name)
def test_what_is_measured_is_near(pair: Pair, ours: Callable[[Pair], Path], modelopt: Any) -> None:
    expected = modelopt(pair.name).tensors
    off = {name: abs(tensor.item() / expected[name][3] - 1)
           for name, _, tensor in tensors(ours(pair))
           if name.rpartition(".")[2] in MEASURED}  # fmt: skip
    assert len(off) == 18
    assert max(off.values()) < NEAR[pair.scheme]
    first = [off[f"model.layers.0.self_attn.{one}_proj.input_scale"] for one in "qkv"]
    assert max(first) < NEAR_BEHIND_FLOAT


@pytest.mark.parametrize("pair", [*SAME, *ALIKE], ids=lambda pair: pair.name)
def test_json(pair: Pair, ours: Callable[[Pair], Path], modelopt: Any) -> None:
    files = modelopt(pair.name).files
    theirs, own = files["hf_quant_config.json"], read(ours(pair), "hf_quant_config.json")
    producer = {"name": "qconvert", "version": qconvert.__version__}
    assert own == {**theirs, "producer": producer}
    assert list(own["quantization"]) == list(theirs["quantization"])  # in its order, too
    theirs, own = files["config.json"], read(ours(pair), "config.json")
    told = theirs["quantization_config"]
    group = files["hf_quant_config.json"]["quantization"].get("group_size")
    size = {} if group is None else {"group_size": group}
    assert own.pop("quantization_config") == {**told, **size, "producer": producer}
    assert (own.pop("rope_theta"), own.pop("torch_dtype")) == (10000.0, "bfloat16")
    assert own == {key: one for key, one in theirs.items() if key != "quantization_config"}
    name = "generation_config.json"
    assert read(ours(pair), name) == files[name]


@pytest.mark.parametrize("pair", [one for one in SAME if one.logits], ids=lambda pair: pair.name)
def test_the_decoder_finds_the_logits_that_modelopt_simulated(
    pair: Pair, ours: Callable[[Pair], Path], decoder: Any, simulate: Any
) -> None:
    """What keeps the decoder honest: figures of NVIDIA's own code. ModelOpt computes in bfloat16,
    which is most of the distance."""
    expected = load_file(LOGITS)[pair.name].float().numpy()
    folder = decoder.decode(ours(pair))
    found = simulate.logits(folder, TOKENS, rounding=pair.rounding)[0, -2:].numpy()
    assert distance(found, expected) < pair.logits
    source = load_file(LOGITS)[f"{pair.family}-source"].float().numpy()
    assert distance(found, expected) < distance(source, expected)


def distance(found: Any, expected: Any) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
