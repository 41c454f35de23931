"""Folders for serving programs, from the command line: written, read back, replaced, refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qconvert.asked import Asked
from qconvert.checkpoint import open_checkpoint
from qconvert.cli import run
from qconvert.formats.known_grids import grid_named
from qconvert.formats.target import Request, target_named
from qconvert.importance import importance
from qconvert.job import prepare
from qconvert.pipeline import convert

Tiny = Callable[..., Path]
TARGETS = ("vllm", "sglang", "lightllm")
RTN = Asked(method="rtn")
FEW = ("--calib-rows", "4", "--calib-length", "32")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)


def left() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*"))


def write(model: Path, *words: str, out: str = "out") -> int:
    """Weight by weight, where nothing else is asked for."""
    method = () if "--method" in words else ("--method", "rtn")
    return run([str(model), "--out", out, "--threads", "1", *method, *words])


def config(folder: str = "out") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(folder, "config.json").read_text("utf-8"))
    return found


def read_back(model: Path, target: str, folder: str = "out") -> dict[str, Any]:
    source = open_checkpoint(model)
    weights = target_named(target).reader(Path(folder)).weights(source)
    assert set(weights) == {one.name for one in source.tensors}
    return {name: weights[name] for name in weights}


def fitted(model: Path, grid: str) -> dict[str, Any]:
    """Linears as the grid's own fit decodes them."""
    source, own = open_checkpoint(model), grid_named(grid)
    return {
        one.name: own.decode(
            own.quantize(source.rows(one, 0, one.shape[0]), importance(source, one))
        )
        for one in source.tensors
        if one.block is not None and len(one.shape) == 2
    }


@pytest.mark.parametrize(
    ("target", "grid"),
    [
        ("vllm", "int4_g128_portable"),
        ("sglang", "int4_g128_portable"),
        ("lightllm", "int4_g128_asym_portable"),
    ],
)
def test_four_bits_hold_what_was_fitted(tiny_model: Tiny, target: str, grid: str) -> None:
    model = tiny_model("llama", dtype="bfloat16")
    assert write(model, "--to", target, "--bits", "4") == 0
    found, source = read_back(model, target), open_checkpoint(model)
    wanted = fitted(model, grid)
    for one in source.tensors:
        stop = one.shape[0] if len(one.shape) > 1 else 1
        expected = wanted.get(one.name, source.rows(one, 0, stop))
        np.testing.assert_array_equal(found[one.name], expected, err_msg=one.name)


@pytest.mark.parametrize("container", ["compressed-tensors", "gptq", "awq"])
def test_all_containers_hold_the_same_weights(tiny_model: Tiny, container: str) -> None:
    model = tiny_model("llama", dtype="bfloat16")
    assert write(model, "--to", "vllm", "--bits", "4", "--container", container) == 0
    found = read_back(model, "vllm")
    for name, values in fitted(model, "int4_g128_portable").items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    method = config()["quantization_config"]["quant_method"]
    assert method == container


@pytest.mark.parametrize("scheme", ["w8a16", "w8a8", "fp8", "fp8-block", "nvfp4a16", "mxfp4"])
def test_other_schemes_come_back_near_the_source(tiny_model: Tiny, scheme: str) -> None:
    model = tiny_model("llama", dtype="bfloat16")
    assert write(model, "--to", "vllm", "--scheme", scheme) == 0
    found, source = read_back(model, "vllm"), open_checkpoint(model)
    error = {"w8a16": 0.01, "w8a8": 0.02, "fp8": 0.04, "fp8-block": 0.04}.get(scheme, 0.15)
    for one in source.tensors:
        if one.block is not None and len(one.shape) == 2:
            w = source.rows(one, 0, one.shape[0])
            off = np.linalg.norm(found[one.name] - w) / np.linalg.norm(w)
            assert 0 < off < error, (one.name, off)


@pytest.mark.parametrize("target", TARGETS)
def test_tied_and_untied_heads(tiny_model: Tiny, target: str) -> None:
    for tied in (True, False):
        model = tiny_model("llama", tie_word_embeddings=tied)
        out = f"tied-{tied}"
        assert write(model, "--to", target, "--bits", "4", out=out) == 0
        assert config(out)["tie_word_embeddings"] is tied
        names = target_named(target).reader(Path(out)).tensors
        assert ("lm_head.weight" in names) is not tied
        assert "model.embed_tokens.weight" in names


@pytest.mark.parametrize("target", TARGETS)
def test_biases_are_kept(tiny_model: Tiny, target: str) -> None:
    model = tiny_model("qwen2", dtype="bfloat16")
    assert write(model, "--to", target, "--bits", "4") == 0
    found, source = read_back(model, target), open_checkpoint(model)
    biases = [one for one in source.tensors if one.part == "bias"]
    assert len(biases) == 6
    for one in biases:
        np.testing.assert_array_equal(found[one.name], source.rows(one, 0, 1))
        assert np.abs(found[one.name]).max() > 0


def test_the_folder_has_what_a_server_reads(tiny_model: Tiny) -> None:
    model = tiny_model("llama")
    assert write(model, "--to", "vllm", "--bits", "4") == 0
    names = {path.name for path in Path("out").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
                     "generation_config.json", "qconvert.json"}  # fmt: skip
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert Path("out", name).read_bytes() == Path(model, name).read_bytes()
    from transformers import AutoConfig, AutoTokenizer

    assert AutoConfig.from_pretrained("out").architectures == ["LlamaForCausalLM"]
    tokens = AutoTokenizer.from_pretrained("out").encode("as before")
    assert tokens == AutoTokenizer.from_pretrained(model).encode("as before")


def test_an_unquantized_folder_is_the_model(tiny_model: Tiny) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = tiny_model("llama", dtype="bfloat16")
    assert write(model, "--to", "vllm", "--type", "bf16") == 0
    ids = torch.arange(5)[None]
    one, other = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)(ids).logits
                  for path in (model, "out"))  # fmt: skip
    assert torch.equal(one, other)
    assert "quantization_config" not in config()


def test_two_shards_and_an_index(tiny_model: Tiny) -> None:
    model = tiny_model("llama")
    size = convert(model, "vllm", bits=4, out="whole", asked=RTN).nbytes
    assert write(model, "--to", "vllm", "--bits", "4", "--split-size", f"{size // 1500}kB") == 0
    names = sorted(path.name for path in Path("out").glob("*.safetensors*"))
    assert names == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
                     "model.safetensors.index.json"]  # fmt: skip
    index = json.loads(Path("out", names[2]).read_text("utf-8"))["weight_map"]
    assert set(index.values()) == set(names[:2])
    assert write(model, "--to", "vllm", "--bits", "4", out="one") == 0
    whole, split = read_back(model, "vllm", "one"), read_back(model, "vllm")
    assert all(np.array_equal(whole[name], split[name]) for name in whole)


@pytest.mark.parametrize("target", TARGETS)
def test_the_plan_foretells_every_byte(tiny_model: Tiny, target: str) -> None:
    job = prepare(tiny_model("llama"), target, out="out")
    done = convert(tiny_model("llama"), target, out="out", request=Request(bits=4), asked=RTN)
    assert done.nbytes == sum(file.stat().st_size for file in Path("out").iterdir())
    assert job.plan.nbytes == done.nbytes
    assert set(done.files) == set(Path("out").iterdir()) == set(job.files)
    assert done.folder == Path("out")


def test_static_scales_are_calibrated_whatever_the_method(
    tiny_model: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model("llama", dtype="bfloat16")
    words = ("--to", "vllm", "--scheme", "w8a8", "--static", "--kv", "fp8", "--compute", "float32")
    assert write(model, *words, *FEW, "--work", "work", "--keep-work") == 0
    assert "4 rows of 32" in capsys.readouterr().out
    reader: Any = target_named("vllm").reader(Path("out"))
    inputs = reader.input_rounding
    assert len(inputs) == 14
    assert all(
        one.kind == "int8" and one.per == -1 and 0 < one.scale < 1 for one in inputs.values()
    )
    q, k, up = (inputs[f"model.layers.0.{name}_proj.weight"].scale
                for name in ("self_attn.q", "self_attn.k", "mlp.up"))  # fmt: skip
    assert q == k != up
    assert set(reader.cache_rounding) == {0, 1}
    assert all(0 < one.key < 1 and 0 < one.value < 1 for one in reader.cache_rounding.values())
    found, wanted = read_back(model, "vllm"), fitted(model, "int8_channel_f32")
    for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)
    assert run(["work", "--to", "vllm", "--kv", "fp8", "--out", "again"]) == 0
    for file in Path("out").iterdir():
        assert file.read_bytes() == Path("again", file.name).read_bytes(), file.name


@pytest.mark.parametrize(
    ("words", "out"),
    [
        (("--to", "vllm", "--bits", "4", "--method", "gptq"), "vllm"),
        (("--to", "lightllm", "--kv", "fp8", "--layer", "down_proj=float"), "lightllm"),
        (("--to", "sglang", "--scheme", "nvfp4"), "sglang"),
        (("--to", "trtllm", "--scheme", "w4a16-awq", "--group", "128"), "trtllm"),
    ],
)
def test_a_work_folder_is_written_in_another_form(
    tiny_model: Tiny, words: tuple[str, ...], out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same codes, without calibrating again; what it does not hold is refused."""
    model = tiny_model("llama", dtype="bfloat16")
    calibrated = ("--method", "gptq", *FEW, "--work", "work", "--keep-work")
    assert write(model, *words, *calibrated, out=out) == 0
    assert run(["work", "--to", "vllm", "--out", "other"]) == 0
    one, other = read_back(model, out, out), read_back(model, "vllm", "other")
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert run(["work", "--to", "vllm", "--scheme", "w8a16", "--out", "none"]) == 2
    assert "int8_g128_portable" in capsys.readouterr().err
    assert not Path("none").exists()


def test_a_folder_is_replaced_only_where_it_is_an_output(
    tiny_copy: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_copy("llama")
    words = ("--to", "vllm", "--bits", "4")
    Path("mine").mkdir()
    assert write(model, *words, out="mine") == 0  # empty: taken
    Path("mine", "config.json").unlink()
    capsys.readouterr()
    for force, told in (((), "a folder with files in it"), (("--force",), "not such an output")):
        assert write(model, *words, *force, out="mine") == 2
        assert told in capsys.readouterr().err
    assert write(model, *words) == 0
    before = Path("out", "model.safetensors").read_bytes()
    assert write(model, "--to", "vllm", "--bits", "8") == 2
    assert "--force" in capsys.readouterr().err
    assert Path("out", "model.safetensors").read_bytes() == before
    assert write(model, "--to", "vllm", "--bits", "8", "--force") == 0
    assert config()["quantization_config"]["format"] == "int-quantized"
    assert write(model, *words, "--force", out=str(model)) == 2
    assert "the model itself" in capsys.readouterr().err
    Path("file").write_text("x")
    assert write(model, *words, "--force", out="file") == 2
    assert "file is a file" in capsys.readouterr().err
    assert not [name for name in left() if name.startswith(".")]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--to", "gguf", "--scheme", "w8a8"), "--to gguf takes no --scheme"),
        (("--to", "gguf", "--asymmetric"), "--to gguf takes no --symmetric or --asymmetric"),
        (("--to", "gguf", "--layer", "a=b"), "--to gguf takes no --layer"),
        (
            ("--to", "gguf", "--tp", "2"),
            "or take --to edge-llm or lightllm or sglang or trtllm or vllm",
        ),
        (("--to", "vllm", "--layer", "a"), "'a' is not PATTERN=SCHEME"),
        (("--to", "vllm", "--layer", "=a"), "'=a' is not PATTERN=SCHEME"),
        (("--to", "vllm", "--group", "many"), "'many' is neither a number of columns"),
        (("--to", "vllm", "--tp", "0"), "--tp"),
        (("--to", "vllm", "--bits", "3"), "--bits 3: no serving program"),
        (("--to", "vllm", "--bits", "4", "--out", "no/such/out"), "no such folder to write to"),
    ],
)
def test_refused_with_nothing_written(
    tiny_model: Tiny, words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model("llama")
    capsys.readouterr()
    assert run([str(model), *words]) == 2
    out, err = capsys.readouterr()
    assert (out, told in err) == ("", True)
    assert left() == []


def test_every_option_of_the_section_reaches_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    from qconvert import pipeline

    class Seen(Exception):
        pass

    def seen(*_: object, request: Request, **__: object) -> None:
        assert request == Request(
            4, "w4a16", 10**9, "w4a16", 64, False, True, "awq", "fp8",
            (("*.down_proj", "w8a16"), ("a=b", "float")), "hopper", 2,
        )  # fmt: skip
        raise Seen

    monkeypatch.setattr(pipeline, "convert", seen)
    words = [
        "model", "--to", "vllm", "--bits", "4", "--type", "w4a16", "--split-size", "1GB",
        "--scheme", "w4a16", "--group", "64", "--asymmetric", "--static", "--container", "awq",
        "--kv", "fp8", "--layer", "*.down_proj=w8a16", "--layer", "a=b=float",
        "--hardware", "hopper", "--tp", "2",
    ]  # fmt: skip
    with pytest.raises(Seen):
        run(["--debug", *words])


def test_plan_and_inspect_tell_a_server_what_it_needs(
    tiny_model: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model("llama")
    assert write(model, "--to", "vllm", "--scheme", "w8a16", "--plan") == 0
    told = capsys.readouterr().out
    for word in ("compressed-tensors", "turing and later; not on cpu", "vllm serve out", "disk"):
        assert word in told
    assert left() == []
    assert write(model, "--to", "vllm", "--bits", "4", "--json", "-") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["folder"] == "out"
    assert facts["about"]["serve"] == "vllm serve out"
    assert run(["inspect", "out"]) == 0
    told = capsys.readouterr().out
    for word in ("w4a16-g128", "compressed-tensors", "cpu, turing and later", "tokenizer.json"):
        assert word in told


def test_targets_list_schemes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["targets", "--json", "-"]) == 0
    found = {one["target"]: one["types"] for one in json.loads(capsys.readouterr().out)}
    assert found["vllm"][0]["name"] == "w4a16-g128"
    names = {target: {one["name"] for one in types} for target, types in found.items()}
    assert {"w8a8", "fp8-block", "nvfp4", "mxfp4"} < names["vllm"]
    assert names["lightllm"] & {"w8a8", "fp8", "nvfp4"} == set()
