"""NVIDIA's loader of TensorRT Edge-LLM on tiny models: what it must find, faults that must show.

Without its environment these tests fail: a skipped proof is none. `make setup` builds it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qconvert.asked import Asked
from qconvert.checkpoint import Checkpoint, open_checkpoint
from qconvert.formats.refusal import MissingRuntime, Refused
from qconvert.formats.target import Request
from qconvert.pipeline import convert
from qconvert.runtimes import environments
from qconvert.runtimes.edge_llm.expected import expected
from qconvert.runtimes.edge_llm.loader import LOADER, EdgeLlm
from qconvert.runtimes.loader import Loaded, loaders, loaders_of

QUICK = Asked(method="rtn", calib_rows=4, calib_length=64)
Tensors = dict[str, torch.Tensor]
Folder = Callable[..., Path]
FIRST = "model.layers.0"


@pytest.fixture(scope="module")
def loader() -> Iterator[EdgeLlm]:
    """The loader, imported once."""
    worker = LOADER.worker()
    yield replace(LOADER, running=worker)
    worker.close()


@pytest.fixture(scope="module")
def source(tiny_model: Callable[..., Path]) -> Callable[..., Checkpoint]:
    """`source("qwen2", tie_word_embeddings=True)`"""
    return lambda family="llama", **options: open_checkpoint(
        tiny_model(family, dtype="bfloat16", **options)
    )


@pytest.fixture(scope="module")
def folder(source: Callable[..., Checkpoint], tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """`folder("fp8", kv="fp8", of=source()) -> Path`: each written once."""
    place = tmp_path_factory.mktemp("edge")

    def build(scheme: str, target: str = "edge-llm", *, of: Checkpoint, **request: Any) -> Path:
        told = "-".join(
            [of.folder.parent.name, of.folder.name, scheme, target, *map(str, request.values())]
        )
        out = place / "".join(letter if letter.isalnum() else "-" for letter in told)
        if not out.exists():
            asked = Request(scheme=scheme, **request)
            convert(of.folder, target, out=out, request=asked, threads=1, asked=QUICK)
        return out

    return build


def test_is_found_by_its_name_and_its_targets() -> None:
    assert loaders()["edge-llm"] is LOADER
    assert "edge-llm" in [one.name for one in loaders_of("trtllm")]
    assert "edge-llm" in [one.name for one in loaders_of("edge-llm")]
    assert loaders_of("gguf") == ()


def test_is_usable_and_names_its_version() -> None:
    assert LOADER.unavailable() is None, LOADER.install
    assert LOADER.version() == "tensorrt-edgellm 0.11.0"
    assert "0.11.0" in LOADER.label
    assert "not TensorRT-LLM" in LOADER.label


FP8_DOWN: dict[str, Any] = {"layers": (("down_proj", "fp8"),)}
FLOAT_DOWN: dict[str, Any] = {"layers": (("down_proj", "float"),)}


@pytest.mark.parametrize(
    ("scheme", "request_", "tensors", "layers"),
    [
        ("w4a16-awq", {}, 39, {"FP16Linear": 1, "ModelOptAWQPrepackedLinear": 14}),
        ("w4a16-awq", {"group": 64}, 39, {"FP16Linear": 1, "ModelOptAWQPrepackedLinear": 14}),
        ("fp8", {}, 49, {"FP16Linear": 1, "FP8Linear": 14}),
        ("fp8", {"kv": "fp8"}, 53, {"FP16Linear": 1, "FP8Linear": 14}),
        ("fp8", FLOAT_DOWN, 45, {"FP16Linear": 3, "FP8Linear": 12}),
        ("nvfp4", {"kv": "fp8"}, 67, {"FP16Linear": 1, "ReplicatedLinear": 10}),
        ("w4a16-awq", FP8_DOWN, 39,
         {"FP16Linear": 1, "FP8Linear": 2, "ModelOptAWQPrepackedLinear": 12}),
        ("fp8", {"layers": (("o_proj", "w4a16-awq"),)}, 49,
         {"FP16Linear": 1, "FP8Linear": 12, "ModelOptAWQPrepackedLinear": 2}),
        ("nvfp4", FP8_DOWN, 61, {"FP16Linear": 1, "FP8Linear": 2, "ReplicatedLinear": 8}),
        ("w8a8-sq", {}, 63, {"FP16Linear": 1, "INT8SQLinear": 14}),
    ],
)  # fmt: skip
def test_a_good_folder_is_taken_whole(
    scheme: str, request_: dict[str, Any], tensors: int, layers: dict[str, int],
    loader: EdgeLlm, folder: Folder, source: Callable[..., Checkpoint],
) -> None:  # fmt: skip
    """`tensors`: 7 of the model that stay float (9 with q and k norms), and those of 14 linears."""
    out = folder(scheme, of=source(), **request_)
    assert loader.passes_over(out) == ""
    found = loader.load(out, source())
    assert found == Loaded((), "tensorrt-edgellm 0.11.0", tensors, 0, layers)
    assert len(expected(out, source()).stored) == tensors


@pytest.mark.parametrize(
    ("family", "options", "scheme", "tensors"),
    [
        ("qwen2", {"tie_word_embeddings": True}, "w4a16-awq", 44),
        ("qwen2", {"tie_word_embeddings": True}, "nvfp4", 68),
        ("qwen3", {}, "fp8", 53),
    ],
)
def test_biases_norms_and_tied_heads(
    family: str, options: dict[str, Any], scheme: str, tensors: int,
    loader: EdgeLlm, folder: Folder, source: Callable[..., Checkpoint],
) -> None:  # fmt: skip
    model = source(family, **options)
    found = loader.load(folder(scheme, of=model), model)
    assert (found.problems, found.tensors, found.skipped) == ((), tensors, 0)


def test_folders_for_tensorrt_llm_are_the_same(
    loader: EdgeLlm, folder: Folder, source: Callable[..., Checkpoint]
) -> None:
    found = loader.load(folder("w4a16-awq", "trtllm", of=source()), source())
    assert (found.problems, found.tensors) == ((), 39)


def test_its_export_has_the_nodes_of_four_bits(
    loader: EdgeLlm, folder: Folder, source: Callable[..., Checkpoint]
) -> None:
    found = loader.nodes(folder("w4a16-awq", of=source()))
    assert found["Int4GroupwiseGemmPluginV2"] == 14
    assert found["AttentionPlugin"] == 2


def without(*names: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for name in names:
            del tensors[name]

    return change


def cut_rows(tensors: Tensors) -> None:
    name = f"{FIRST}.mlp.gate_proj.weight"
    tensors[name] = tensors[name][:-8].clone()


def one_more(tensors: Tensors) -> None:
    tensors[f"{FIRST}.mlp.gate_proj.zero_point"] = torch.zeros(1)


def other_name(tensors: Tensors) -> None:
    name = f"{FIRST}.self_attn.o_proj.weight"
    tensors[f"{FIRST}.attention.dense.weight"] = tensors.pop(name)


FAULTS: dict[str, tuple[Callable[[Tensors], None], tuple[str, ...]]] = {
    "a scale is missing": (
        without(f"{FIRST}.self_attn.q_proj.weight_scale"),
        ("it left 1 tensors",
         "it took 47 tensors, where the model and the configuration make 49",
         f"the folder lacks {FIRST}.self_attn.q_proj.weight_scale",
         "q_proj became FP16Linear, not FP8Linear"),
    ),
    "rows are missing": (cut_rows, ("(504, 256), not float8_e4m3fn (512, 256)",)),
    "a weight is missing": (
        without(f"{FIRST}.self_attn.o_proj.weight"), ("it took 48 tensors", "lacks"),
    ),
    "a tensor too many": (one_more, ("it left 1 tensors", "zero_point, which nothing reads")),
    "a name of another program": (
        other_name, ("it left 1 tensors", "lacks", "attention.dense.weight, which nothing reads"),
    ),
    "a norm is missing": (
        without(f"{FIRST}.input_layernorm.weight"), ("it took 48 tensors", "input_layernorm"),
    ),
}  # fmt: skip


def edited(good: Path, out: Path, change: Callable[[Tensors], None]) -> Path:
    """A copy of a folder with its tensors changed, the codes as they are."""
    shutil.copytree(good, out)
    path = out / "model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors: Tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata=metadata)
    return out


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_it_does_not_mind_is_found(
    name: str, loader: EdgeLlm, folder: Folder, source: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    """It raises for none of these: it loads something else, or less."""
    change, told = FAULTS[name]
    bad = edited(folder("fp8", of=source()), tmp_path / "x", change)
    text = "\n".join(loader.load(bad, source()).problems)
    for words in told:
        assert words in text


def test_an_algorithm_of_another_name_is_found(
    loader: EdgeLlm, folder: Folder, source: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    """The configuration says FP8, the tensors are of 4 bits."""
    own = Path(shutil.copytree(folder("w4a16-awq", of=source()), tmp_path / "x"))
    told = json.loads((own / "hf_quant_config.json").read_text("utf-8"))
    told["quantization"]["quant_algo"] = "FP8"
    (own / "hf_quant_config.json").write_text(json.dumps(told), encoding="utf-8")
    assert any("not float8_e4m3fn" in one for one in loader.load(own, source()).problems)


def test_what_it_refuses_is_told_in_its_words(
    loader: EdgeLlm, folder: Folder, source: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    def change(tensors: Tensors) -> None:
        for part in ("weight", "weight_scale"):
            name = f"{FIRST}.mlp.gate_proj.{part}"
            rows = 240 if part == "weight" else 480
            tensors[name] = tensors[name][:rows].clone()

    bad = edited(folder("w4a16-awq", of=source()), tmp_path / "x", change)
    with pytest.raises(Refused, match="N=480"):
        loader.load(bad, source())


@pytest.mark.parametrize(
    ("scheme", "request_", "why"),
    [
        ("fp8-channel", {}, "FP8_PER_CHANNEL_PER_TOKEN"), ("w8a16", {}, "W8A16"),
        ("nvfp4a16", {}, "W4A16_NVFP4"), ("nvfp4", {"kv": "nvfp4"}, "NVFP4 cache"),
    ],
)  # fmt: skip
def test_what_it_would_read_otherwise_is_passed_over(
    scheme: str, request_: dict[str, Any], why: str,
    loader: EdgeLlm, folder: Folder, source: Callable[..., Checkpoint],
) -> None:  # fmt: skip
    out = folder(scheme, "trtllm", of=source(), **request_)
    assert why in loader.passes_over(out)
    with pytest.raises(Refused, match=why):
        loader.load(out, source())


def test_without_its_environment_it_is_not_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(environments.VARIABLE, str(tmp_path))
    assert LOADER.unavailable() == "not installed"
    with pytest.raises(MissingRuntime, match="not installed"):
        LOADER.version()
