"""Our own products on a folder's packed weights, by the bodies that a processor has; on a GPU only
the device differs. No test here needs one, and none says anything of speed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from qconvert.asked import Asked
from qconvert.checkpoint import Checkpoint, open_checkpoint
from qconvert.formats.refusal import MissingRuntime, Refused
from qconvert.formats.target import Request, target_named
from qconvert.pipeline import convert
from qconvert.running import chosen_runtime
from qconvert.runtimes import environments, machine, noise, reference
from qconvert.runtimes.check import check
from qconvert.runtimes.packed import runtime as packed_runtime
from qconvert.runtimes.packed.engine import Engine
from qconvert.runtimes.packed.linears import PRODUCTS
from qconvert.runtimes.packed.runtime import NO_GPU, RUNTIME, Packed
from qconvert.runtimes.protocol import WorkerError
from qconvert.runtimes.rounding import round_inputs
from qconvert.runtimes.runtime import runtimes

TOKENS = [5, 77, 300, 5, 12, 401, 9, 33]
QUICK = Asked(method="rtn", calib_rows=4, calib_length=64)
HERE: Packed = replace(RUNTIME, device="cpu", dtypes=("float32",), body="plain")
FOURS = ("w4a16-g128", "w4a16-g32-asym", "w4a16-channel")
EIGHTS = ("w8a8", "w8a8-static")
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Path]) -> Checkpoint:
    return open_checkpoint(tiny_model("llama", dtype="float16"))


@pytest.fixture(scope="module")
def folder(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """`folder("w4a16-g128", "llama", kv=None) -> Path`: each written once."""
    place = tmp_path_factory.mktemp("packed")

    def build(type: str, family: str = "llama", **request: Any) -> Path:
        out = place / "-".join([type, family, *map(str, request.values())])
        if not out.exists():
            model = tiny_model(family, dtype="float16")
            asked = Request(**request)
            convert(model, "vllm", type=type, out=out, request=asked, threads=1, asked=QUICK)
        return out

    return build


def loaded(out: Path, dtypes: tuple[str, ...] = ("float32",), body: str = "plain") -> Engine:
    engine = Engine()
    engine.load(str(out), threads=1, context=64, device="cpu", dtypes=dtypes, body=body)  # type: ignore[arg-type]
    return engine


def logits(engine: Engine) -> Any:
    return engine.logits(np.array(TOKENS, np.int32)).arrays[0]


def decoded(out: Path, model: Checkpoint) -> Any:
    """Logits of the decoded folder in the reference, inputs rounded where the folder asks."""
    reader = target_named("vllm").reader(out)
    judge = reference.from_weights(model, reader.weights(model), threads=1)
    with noise.rounded(judge, noise.rounding_told(reader, model)):
        return judge.logits(TOKENS)


# Which runtime is taken


def test_is_found_by_its_name() -> None:
    assert runtimes()["packed"].target == "vllm"


def test_without_a_gpu_it_is_unavailable_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "nvidia_gpu", lambda: False)
    assert RUNTIME.unavailable() == NO_GPU
    with pytest.raises(MissingRuntime, match="no NVIDIA GPU"):
        RUNTIME.version()
    with pytest.raises(MissingRuntime, match="no NVIDIA GPU"):
        chosen_runtime(target_named("vllm"), Path("out"), "packed", None)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A machine with a GPU, as far as one can tell without asking it, and no vLLM."""
    monkeypatch.setattr(machine, "nvidia_gpu", lambda: True)
    monkeypatch.setattr(packed_runtime, "version", lambda name: "2.13.0")
    monkeypatch.setattr(packed_runtime, "has_triton", lambda: True)
    monkeypatch.setenv(environments.VARIABLE, str(tmp_path))
    return monkeypatch


def test_with_a_gpu_it_needs_triton_and_torch_for_it(gpu: pytest.MonkeyPatch) -> None:
    assert RUNTIME.unavailable() is None
    assert RUNTIME.version() == "torch 2.13.0, transformers 2.13.0, triton 2.13.0"
    gpu.setattr(packed_runtime, "version", lambda name: "2.13.0+cpu")
    assert RUNTIME.unavailable() == "torch 2.13.0+cpu is built without CUDA"
    gpu.setattr(packed_runtime, "has_triton", lambda: False)
    assert RUNTIME.unavailable() == "Python has no package triton"


@pytest.mark.usefixtures("gpu")
def test_it_is_taken_only_where_it_is_named() -> None:
    """Also where it is the only one that could run: a check stands on what users serve with."""
    target = target_named("vllm")
    assert chosen_runtime(target, Path("out"), "packed", None).name == "packed"
    with pytest.raises(MissingRuntime, match="vllm is not usable here"):
        chosen_runtime(target, Path("out"), None, None)


def test_a_device_that_is_not_there_is_told(folder: Callable[..., Path]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(WorkerError, match="no CUDA device"):
        Engine().load(str(folder("w8a8")), 1, 64, "cuda", ["float16"], None)


def test_looking_for_it_imports_neither_torch_nor_triton() -> None:
    code = (
        "import sys\nfrom qconvert.runtimes.runtime import runtimes\n"
        "runtimes()['packed'].unavailable()\n"
        "print(sorted({'torch', 'triton', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# What it computes


@pytest.mark.parametrize("body", ["plain", "cpu"])
@pytest.mark.parametrize("type", [*FOURS, *EIGHTS])
def test_linears_give_the_product_with_the_decoded_weight(
    type: str, body: str, folder: Callable[..., Path]
) -> None:
    """Against float64. Float32 sums of 512 products, in any order."""
    reader: Any = target_named("vllm").reader(folder(type))
    engine = loaded(folder(type), body=body)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 512), np.float32))
    kinds = set()
    for name, linear in reader.linears.items():
        module = engine._model.get_submodule(linear.module)
        kinds.add(builtin_name(module))
        given = x[:, : linear.shape[1]]
        rounding = reader.input_rounding.get(name)
        read = given if rounding is None else round_inputs(given, rounding)
        want = read.double() @ torch.from_numpy(reader.decode(name)).double().t()
        assert (module(given) - want).abs().max() < 3e-6 * want.abs().max()
    assert len(kinds) == 1
    assert kinds <= {builtin_name(one) for one in PRODUCTS.values()}


def builtin_name(module: Any) -> str:
    return (module if isinstance(module, type) else type(module)).__name__


@pytest.mark.parametrize(
    ("type", "family"),
    [*((type, "llama") for type in FOURS),
     *(("w4a16-g64-asym", family) for family in ("qwen2", "phi3", "gpt_neox", "gemma3_text"))],
)  # fmt: skip
def test_logits_are_those_of_the_decoded_folder(
    type: str, family: str, folder: Callable[..., Path], tiny_model: Callable[..., Path]
) -> None:
    """Biases, fused linears, tied and renamed heads among them. Float32: sums of another order."""
    source = open_checkpoint(tiny_model(family, dtype="float16"))
    out = folder(type, family)
    want = decoded(out, source)
    for body in ("plain", "cpu"):
        np.testing.assert_allclose(logits(loaded(out, body=body)), want, atol=2e-5)


@pytest.mark.parametrize("type", EIGHTS)
def test_eight_bits_are_near_the_decoded_folder(
    type: str, folder: Callable[..., Path], model: Checkpoint
) -> None:
    """Activations near a tie may fall to the other side, so that single logits move by a step; the
    products themselves are held above. Logits have a standard deviation of 1."""
    off = logits(loaded(folder(type))) - decoded(folder(type), model)
    assert np.sqrt((off**2).mean()) < 0.03


def test_an_unquantized_folder_runs_as_well(folder: Callable[..., Path], model: Checkpoint) -> None:
    want = reference.from_folder(model.folder, threads=1).logits(TOKENS)
    np.testing.assert_allclose(logits(loaded(folder("f16"))), want, atol=2e-5)


def test_a_wrong_code_shows(folder: Callable[..., Path], model: Checkpoint, tmp_path: Path) -> None:
    out = Path(shutil.copytree(folder("w4a16-g128"), tmp_path / "out"))
    good = logits(loaded(out))
    change(out, "model.layers.1.mlp.down_proj.weight_packed", lambda one: one ^ (one & 0xF))
    assert np.abs(logits(loaded(out)) - good).max() > 0.01
    np.testing.assert_allclose(logits(loaded(out)), decoded(out, model), atol=2e-5)


def change(out: Path, name: str, to: Callable[[Any], Any]) -> None:
    path = out / "model.safetensors"
    tensors = load_file(path)
    tensors[name] = to(tensors[name]).astype(tensors[name].dtype)
    save_file(tensors, path, {"format": "pt"})


def test_codes_stay_packed(folder: Callable[..., Path]) -> None:
    """What the model holds is what the file holds, and its rotary frequencies."""
    out = folder("w4a16-g128")
    held = loaded(out, ("float16",))._model
    tensors = [*held.parameters(), *held.buffers()]
    stored = (out / "model.safetensors").stat().st_size
    assert sum(one.numel() * one.element_size() for one in tensors) < stored
    assert not any(one.is_meta for one in tensors)


def test_activations_that_overflow_are_computed_in_the_next_type(
    folder: Callable[..., Path], tmp_path: Path
) -> None:
    out = Path(shutil.copytree(folder("w4a16-g128"), tmp_path / "out"))
    change(out, NORM, lambda one: one * 0 + 6e4)
    engine = Engine()
    told = engine.load(str(out), 1, 64, "cpu", ["float16", "bfloat16"], "plain").result
    assert told["dtype"] == "bfloat16"
    assert told["notes"][1:] == ["activations overflow float16: computed in bfloat16"]
    with pytest.raises(WorkerError, match="NaN or infinite in float16"):
        loaded(out, ("float16",))


# What it refuses


@pytest.mark.parametrize(
    ("type", "request_", "reason"),
    [
        ("w8a16", {}, "no product on packed weights of w8a16"),
        ("fp8-channel", {}, "no product on packed weights of fp8-channel"),
        ("w4a16-g128", {"container": "gptq"}, "packed as gptq packs"),
        ("w4a16-g128", {"kv": "fp8"}, "asks for a KV cache in fp8"),
    ],
)
def test_what_has_no_product_is_refused(
    type: str, request_: dict[str, str], reason: str, folder: Callable[..., Path]
) -> None:
    with pytest.raises(WorkerError, match=reason) as refused:
        loaded(folder(type, **request_))
    assert refused.value.kind == "refused"
    assert refused.value.remedy


@pytest.mark.parametrize(
    ("name", "other", "reason"),
    [
        (NORM, None, f"the folder lacks {NORM}"),
        (NORM, "model.more.weight", "model.more.weight, unknown to the model"),
        ("model.layers.0.self_attn.q_proj.weight_shape", np.array([256, 512]), "weight_shape is"),
        (NORM, np.ones(255, np.float16), r"is \(255,\), the model wants \(256,\)"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(
    name: str, other: Any, reason: str, folder: Callable[..., Path], tmp_path: Path
) -> None:
    out = Path(shutil.copytree(folder("w4a16-g128"), tmp_path / "out"))
    tensors = load_file(out / "model.safetensors")
    old = tensors.pop(name)
    if isinstance(other, str):
        tensors[other] = old
    elif other is not None:
        tensors[name] = other
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    with pytest.raises(WorkerError, match=reason):
        loaded(out)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no model folder"):
        HERE.open(tmp_path, threads=1, context=64)


# In its own process


def test_a_session_answers_all_calls(folder: Callable[..., Path], model: Checkpoint) -> None:
    out = folder("w4a16-g128")
    reader = target_named("vllm").reader(out)
    judge = reference.from_weights(model, reader.weights(model), threads=1)
    with HERE.open(out, threads=1, context=64) as session:
        got, blocks = session.logits(TOKENS), session.blocks(TOKENS)  # type: ignore[attr-defined]
        want, streams = judge.logits_and_blocks(TOKENS)
        np.testing.assert_allclose(got, want, atol=2e-5)
        np.testing.assert_allclose(blocks, streams, atol=2e-5)
        made = session.generate(TOKENS, 6)
        greedy = [*TOKENS]
        for _ in made:
            greedy.append(int(judge.logits(greedy)[-1].argmax()))
        assert made == greedy[len(TOKENS) :]
        assert len(session.tokenize("plain text")) > 1
        assert session.tokenize("</s>", special=True) == [2]
        assert session.tokenize("</s>") != [2]
        rates = session.throughput(12, 4, 2, 3)
        assert (rates.prompt_tokens, rates.generate_tokens, rates.sequences) == (12, 4, 3)
        assert min(*rates.prompt_rates, *rates.generate_rates) > 0
        assert session.peak_bytes() > 50_000_000
        with pytest.raises(Refused, match="at most 64 sequences"):
            session.throughput(8, 1, 1, 65)
        assert session.dtype == "float32"  # type: ignore[attr-defined]
        assert "plain on a CPU" in session.notes[0]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("type", "most"), [("w4a16-g128-asym", 3e-6), ("w8a8", 2e-3)])
def test_a_good_folder_passes_its_check(
    type: str, most: float, folder: Callable[..., Path], model: Checkpoint, prose: Path
) -> None:
    """In float16, as on a GPU. `most`: mean KL from the decoded file rounded alike; as of vLLM."""
    out = folder(type)
    found = check(
        out, model, reader=target_named("vllm").reader(out),
        runtime=replace(HERE, dtypes=("float16",), body=None), text_file=prose, windows=2,
        length=48, threads=1,
    )  # fmt: skip
    assert found.reasons == ()
    assert found.noise is not None
    assert found.noise.beyond.kl_mean < most
    assert found.tokens is not None
    assert found.tokens.mismatches == 0
    assert any("products on packed weights: cpu" in note for note in found.notes)


def test_the_bodies_of_a_gpu_give_the_same_logits(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under Triton's interpreter where there is no GPU, which is read when a process starts. In
    float16, so that sums of another order round apart."""
    sizes = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 1}
    small = tiny_model("llama", dtype="float16", **sizes)
    place = "cuda" if torch.cuda.is_available() else "cpu"
    if place == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    for type in ("w4a16-g64-asym", "w8a8"):
        out = tmp_path / type
        convert(small, "vllm", type=type, out=out, threads=1, asked=QUICK)
        triton = replace(HERE, device=place, dtypes=("float16",), body="gpu")
        with triton.open(out, threads=1, context=64) as session:
            got = session.logits(TOKENS)
        want = logits(loaded(out, ("float16",)))
        assert np.abs(got - want).max() < 0.02


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("type", [*FOURS, *EIGHTS])
def test_a_good_folder_passes_its_check_on_a_gpu(
    type: str, folder: Callable[..., Path], model: Checkpoint, prose: Path
) -> None:
    out = folder(type)
    found = check(
        out, model, reader=target_named("vllm").reader(out), runtime=RUNTIME, text_file=prose,
        windows=2, length=48, threads=1,
    )  # fmt: skip
    assert found.reasons == ()
    assert any("products on packed weights: gpu" in note for note in found.notes)
