"""Loaders in a check, and the check of the file alone: what each finding does to the verdict."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qconvert.asked import Asked
from qconvert.checkpoint import Checkpoint, open_checkpoint
from qconvert.formats.refusal import MissingRuntime, Refused, refuse
from qconvert.formats.source import Source
from qconvert.formats.target import Request, target_named
from qconvert.pipeline import convert
from qconvert.runtimes.check import NO_RUNTIME, check
from qconvert.runtimes.findings import CheckReport, LoaderFacts
from qconvert.runtimes.gate.gates import Gates
from qconvert.runtimes.installable import installable
from qconvert.runtimes.loader import Loaded, Loader, loaders, loaders_of
from qconvert.runtimes.loading import read_by
from qconvert.runtimes.process import RuntimeFailed
from qconvert.runtimes.report import check_view

FINE = Loaded()
QUICK = Asked(method="rtn", calib_rows=4, calib_length=64)
Folder = Callable[..., Path]


@dataclass(frozen=True)
class Reads:
    """A loader that finds what it is made to find."""

    finds: Any = FINE
    lacking: str | None = None
    passes: str = ""
    name: str = "reads"
    label: str = "a program loads it"
    targets: tuple[str, ...] = ("trtllm",)
    install: str = "install it"

    def unavailable(self) -> str | None:
        return self.lacking

    def passes_over(self, path: Path) -> str:
        return self.passes

    def load(self, path: Path, source: Source) -> Loaded:
        if isinstance(self.finds, Exception):
            raise self.finds
        found: Loaded = self.finds
        return found


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Path]) -> Checkpoint:
    return open_checkpoint(tiny_model("llama", dtype="bfloat16"))


@pytest.fixture(scope="module")
def folder(model: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    place = tmp_path_factory.mktemp("alone")

    def build(scheme: str, **request: Any) -> Path:
        out = place / "-".join([scheme, *map(str, request.values())])
        if not out.exists():
            asked = Request(scheme=scheme, **request)
            convert(model.folder, "trtllm", out=out, request=asked, threads=1, asked=QUICK)
        return out

    return build


def alone(out: Path, model: Checkpoint, prose: Path, **options: Any) -> CheckReport:
    reader = target_named("trtllm").reader(out)
    return check(
        out, model, reader=reader, runtime=None, text_file=prose, windows=2, length=48, threads=1,
        **options,
    )  # fmt: skip


def shown(report: CheckReport) -> str:
    out = io.StringIO()
    Console(file=out, width=200, markup=False, highlight=False).print(check_view(report))
    return out.getvalue()


@pytest.mark.parametrize("one", [Reads(), *loaders().values()], ids=lambda one: one.name)
def test_a_loader_has_what_is_asked_of_it(one: Loader) -> None:
    assert one.label
    assert one.targets
    assert one.unavailable() is None or one.install
    assert "\n" not in (one.unavailable() or "")
    for target in one.targets:
        assert target_named(target).name == target
        assert isinstance(one, Reads) or one in loaders_of(target)


def test_what_can_be_installed() -> None:
    found: Mapping[str, Any] = installable()
    assert {"vllm", "llamacpp", "tensorrt-llm", "edge-llm"} <= set(found)
    assert "trtllm-rules" not in found
    assert all(recipe.name == name for name, one in found.items() for recipe in one.recipes)


def test_weights_alone_round_no_activations(folder: Folder, model: Checkpoint, prose: Path) -> None:
    found = alone(folder("w8a16"), model, prose)
    assert found.reasons == ()
    assert found.passed
    assert found.runtime is None
    assert (found.total, found.runtime_adds, found.noise, found.as_told) == (None,) * 4
    assert NO_RUNTIME in found.notes
    assert 0 < found.quantization.kl_mean < 0.05
    assert json.loads(json.dumps(asdict(found)))["runtime"] is None
    text = shown(found)
    assert "PASS  of the file alone, no runtime was run" in text
    assert "activations rounded" not in text


def test_rounded_activations_and_a_rounded_cache_are_told(
    folder: Folder, model: Checkpoint, prose: Path
) -> None:
    """The weights of both are the same: what differs is the cache."""
    plain, kept = (alone(folder("fp8", **kv), model, prose) for kv in ({}, {"kv": "fp8"}))
    assert plain.passed
    assert kept.passed
    assert plain.as_told is not None
    assert kept.as_told is not None
    assert plain.quantization.kl_mean == kept.quantization.kl_mean
    assert plain.quantization.kl_mean < plain.as_told.kl_mean < kept.as_told.kl_mean
    assert "activations rounded as it says (what users should get)" in shown(kept)


def test_the_gate_holds_what_users_get(folder: Folder, model: Checkpoint, prose: Path) -> None:
    free = alone(folder("fp8", kv="fp8"), model, prose)
    assert free.as_told is not None
    between = (free.quantization.kl_mean + free.as_told.kl_mean) / 2
    found = alone(folder("fp8", kv="fp8"), model, prose, gates=Gates(max_kl=between))
    assert not found.passed
    assert "the mean KL from the source is" in found.reasons[0]


def test_a_wrong_tensor_fails_without_a_runtime(
    folder: Folder, model: Checkpoint, prose: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(folder("w8a16"), tmp_path / "x"))
    path = out / "model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    name = "model.layers.1.mlp.up_proj.weight_scale"
    tensors[name] = tensors[name] / 2
    save_file(tensors, path, metadata=metadata)
    found = alone(out, model, prose)
    assert not found.passed
    assert "layers.1.mlp.up_proj" in found.reasons[0]


def test_what_a_loader_took_stands_in_the_report(
    folder: Folder, model: Checkpoint, prose: Path
) -> None:
    layers = {"FP8Linear": 14, "FP16Linear": 1}
    one = Reads(Loaded((), "program 1.0", 53, 0, layers, ("a warning",)))
    found = alone(folder("w8a16"), model, prose, loaders=[one])
    assert found.passed
    assert found.loaders == (
        LoaderFacts("reads", "a program loads it", "program 1.0", 53, 0, layers, ()),
    )
    assert "reads: a warning" in found.notes
    assert "+ a program loads it: 53 tensors, 0 left; 14 FP8Linear, 1 FP16Linear" in shown(found)
    json.dumps(asdict(found))


@pytest.mark.parametrize(
    ("finds", "words"),
    [
        (Loaded(("it left 2 tensors",), "program 1.0"), "program 1.0 does not load it as it is"),
        (refuse("unknown algorithm"), "unknown algorithm"),
        (RuntimeFailed("program", "crashed (SIGSEGV)", crashed=True), "SIGSEGV"),
    ],
)
def test_what_a_loader_finds_wrong_fails_the_check(
    finds: Any, words: str, folder: Folder, model: Checkpoint, prose: Path
) -> None:
    found = alone(folder("w8a16"), model, prose, loaders=[Reads(finds)])
    assert not found.passed
    assert any(words in reason for reason in found.reasons)
    text = shown(found)
    assert words in text
    assert "+ a program loads it" not in text


@pytest.mark.parametrize(
    ("one", "note"),
    [
        (Reads(lacking="not installed"), "not asked: reads, not installed (install it)"),
        (Reads(passes="it does not read W8A16"), "not asked: reads, it does not read W8A16"),
        (Reads(MissingRuntime("reads", "gone\nlong", "x")), "not asked: reads, gone"),
    ],
)
def test_a_loader_that_is_not_asked_is_a_note(
    one: Reads, note: str, folder: Folder, model: Checkpoint
) -> None:
    assert read_by([one], folder("w8a16"), model) == ([], [note])


def test_each_is_asked_in_turn(folder: Folder, model: Checkpoint) -> None:
    asked = [Reads(name="a"), Reads(lacking="not here", name="b"), Reads(name="c")]
    found, notes = read_by(asked, folder("w8a16"), model)
    assert [one.name for one in found] == ["a", "c"]
    assert len(notes) == 1


def test_the_restated_rules_are_always_asked(
    folder: Folder, model: Checkpoint, tmp_path: Path
) -> None:
    (rules,) = [one for one in loaders_of("trtllm") if one.name == "trtllm-rules"]
    assert rules.unavailable() is None
    assert rules.load(folder("w8a16"), model) == Loaded()
    assert rules.passes_over(folder("w8a16")) == ""
    assert "quantized" in rules.passes_over(model.folder)
    own = Path(shutil.copytree(folder("w8a16"), tmp_path / "x"))
    path = own / "hf_quant_config.json"
    told = json.loads(path.read_text("utf-8"))
    told["quantization"]["quant_algo"] = "W8A8_SQ_PER_CHANNEL"
    path.write_text(json.dumps(told), encoding="utf-8")
    assert any("W8A8_SQ" in one for one in rules.load(own, model).problems)
    assert len(rules.load(own, model).problems) <= 9


def test_a_model_without_a_tokenizer_cannot_be_read(
    folder: Folder, tiny_copy: Callable[..., Path], prose: Path
) -> None:
    own = tiny_copy("llama", dtype="bfloat16")
    (own / "tokenizer.json").unlink()
    with pytest.raises(Refused, match=r"no tokenizer\.json"):
        alone(folder("w8a16"), open_checkpoint(own), prose)
