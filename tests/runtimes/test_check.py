"""The whole check on tiny models: it passes what is right and fails what was planted."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console
from safetensors.numpy import load_file, save_file

from qconvert.asked import Asked
from qconvert.checkpoint import Checkpoint, open_checkpoint
from qconvert.formats.gguf.target import TARGET
from qconvert.formats.refusal import MissingRuntime, Refused
from qconvert.formats.target import InputRounding
from qconvert.pipeline import convert
from qconvert.runtimes.check import check
from qconvert.runtimes.findings import CheckReport
from qconvert.runtimes.gate.gates import Gates
from qconvert.runtimes.llamacpp import LlamaCpp
from qconvert.runtimes.noise import Rounding, activation_blocks, rounded
from qconvert.runtimes.process import RuntimeFailed
from qconvert.runtimes.reference import Reference, from_weights
from qconvert.runtimes.report import check_view
from qconvert.runtimes.runtime import Session

Tensors = dict[str, NDArray[np.float32]]
SMALL: dict[str, Any] = {"windows": 2, "length": 48, "threads": 1}


def checked(
    out: Path, source: Checkpoint, runtime: Any, prose: Path, *, read: Path | None = None,
    **options: Any,
) -> CheckReport:  # fmt: skip
    reader = TARGET.reader(read or out)
    settings = {**SMALL, **options}
    return check(out, source, reader=reader, runtime=runtime, text_file=prose, **settings)


@pytest.mark.parametrize("type", ["BF16", "Q8_0", "Q4_0", "Q4_K_M"])
def test_a_good_file_passes(
    type: str, source: Checkpoint, runtime: LlamaCpp, tiny_gguf: Callable[..., Path], prose: Path
) -> None:
    seen: list[tuple[str, int, int]] = []
    found = checked(
        tiny_gguf(type), source, runtime, prose, floor=tiny_gguf("F32"),
        progress=lambda what, done, total: seen.append((what, done, total)),
    )  # fmt: skip
    assert found.reasons == ()
    assert found.passed
    assert found.runtime_adds is not None
    assert found.total is not None
    assert found.floor is not None
    assert found.noise is not None
    assert found.floor.kl_mean < 1e-5  # float32 in llama.cpp, but for its 16-bit cache
    assert found.noise.adds.kl_mean < found.noise.limit
    assert found.noise.beyond.kl_mean < found.noise.limit
    assert found.quantization.positions == 2 * 47
    assert found.tokens is not None
    assert found.tokens.mismatches == 0
    assert found.tokens.strings > 3000
    assert ("file and runtime", 2, 2) in seen
    json.dumps(asdict(found))


def test_the_distances_add_up(
    source: Checkpoint, runtime: LlamaCpp, tiny_gguf: Callable[..., Path], prose: Path
) -> None:
    found = checked(tiny_gguf("Q4_0"), source, runtime, prose)
    assert found.runtime_adds is not None
    assert found.total is not None
    assert found.runtime_adds.kl_mean < 0.2 * found.quantization.kl_mean
    assert found.total.kl_mean == pytest.approx(found.quantization.kl_mean, rel=0.2)
    assert found.floor is None


def permute_q_rows(tensors: Tensors) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name] = np.ascontiguousarray(np.roll(tensors[name], 1, axis=0))


def drop_norm(tensors: Tensors) -> None:
    name = "model.layers.1.post_attention_layernorm.weight"
    tensors[name] = np.ones_like(tensors[name])


def swap_gate_and_up(tensors: Tensors) -> None:
    gate, up = (f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up"))
    tensors[gate], tensors[up] = tensors[up], tensors[gate]


def layer_from_another(tensors: Tensors) -> None:
    name = "model.layers.{}.self_attn.o_proj.weight"
    tensors[name.format(1)] = tensors[name.format(0)].copy()


FAULTS = {
    permute_q_rows: "layers.0.self_attn.q_proj",
    drop_norm: "layers.1.post_attention_layernorm",
    swap_gate_and_up: "layers.1.mlp.gate_proj",
    layer_from_another: "layers.1.self_attn.o_proj",
}


@pytest.fixture
def damaged(tiny_copy: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """A file made of a model with a fault in it."""

    def build(fault: Callable[[Tensors], None], type: str) -> Path:
        folder = tiny_copy("llama")
        path = folder / "model.safetensors"
        tensors = dict(load_file(path))
        fault(tensors)
        save_file(tensors, path, metadata={"format": "pt"})
        out = tmp_path / f"{fault.__name__}-{type}.gguf"
        convert(folder, type=type, out=out, threads=1, asked=Asked(method="rtn"))
        return out

    return build


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_file_is_named(
    fault: Callable[[Tensors], None],
    source: Checkpoint,
    runtime: LlamaCpp,
    damaged: Callable[..., Path],
    prose: Path,
) -> None:
    """Our reader decodes what llama.cpp computes with, so that only the source can tell."""
    found = checked(damaged(fault, "Q4_0"), source, runtime, prose)
    assert not found.passed
    assert any(FAULTS[fault] in reason for reason in found.reasons)
    assert not any("does not compute" in reason for reason in found.reasons)


@pytest.mark.parametrize(
    ("fault", "type"),
    [(permute_q_rows, "Q8_0"), (drop_norm, "Q4_0"), (swap_gate_and_up, "Q4_K_M"),
     (layer_from_another, "Q4_K_M")],
)  # fmt: skip
def test_a_fault_that_the_reader_does_not_see_shows_in_the_runtime(
    fault: Callable[[Tensors], None],
    type: str,
    source: Checkpoint,
    runtime: LlamaCpp,
    tiny_gguf: Callable[..., Path],
    damaged: Callable[..., Path],
    prose: Path,
) -> None:
    """Reader and writer agree on something that llama.cpp does not: a wrong rope order, say."""
    found = checked(damaged(fault, type), source, runtime, prose, read=tiny_gguf(type))
    assert not found.passed
    assert [reason for reason in found.reasons if "does not compute" in reason]
    assert all(error.ok for error in found.tensors)
    assert found.noise is not None
    assert found.noise.adds.kl_mean > 3 * found.noise.limit


def test_a_tokenizer_that_differs_fails(
    source: Checkpoint,
    runtime: LlamaCpp,
    tiny_gguf: Callable[..., Path],
    tiny_copy: Callable[..., Path],
    prose: Path,
) -> None:
    folder = tiny_copy("llama")
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text("utf-8"))
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-20]
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    found = checked(tiny_gguf("Q8_0"), open_checkpoint(folder), runtime, prose)
    assert not found.passed
    assert found.tokens is not None
    assert found.tokens.mismatches > 0
    assert any("strings get other tokens" in reason for reason in found.reasons)


def test_max_kl_is_a_gate(
    source: Checkpoint, runtime: LlamaCpp, tiny_gguf: Callable[..., Path], prose: Path
) -> None:
    out = tiny_gguf("Q4_0")
    assert checked(out, source, runtime, prose, gates=Gates(max_kl=50.0)).passed
    found = checked(out, source, runtime, prose, gates=Gates(max_kl=1e-6))
    assert found.verdict == "FAIL"
    assert "the mean KL from the source is" in found.reasons[0]
    assert found.findings == ()
    assert [(one.gate, one.verdict) for one in found.judgements] == [("max-kl", "FAIL")]


@dataclass(frozen=True)
class Failing:
    """llama.cpp with a session that fails as `how` says."""

    plain: LlamaCpp
    how: str
    name: str = "llamacpp"
    target: str = "gguf"
    install: str = "pip install it"

    def unavailable(self) -> str | None:
        return "no library" if self.how == "missing" else None

    def version(self) -> str:
        return "1"

    def open(self, path: Path, *, threads: int, context: int) -> Session:
        if self.how == "refuses":
            raise Refused()
        session = self.plain.open(path, threads=threads, context=context)
        logits = session.logits

        def failing(tokens: Any) -> NDArray[np.float32]:
            found = logits(tokens).copy()
            if self.how == "crash":
                raise RuntimeFailed("llama.cpp", "crashed (SIGSEGV)", "last words", crashed=True)
            if self.how == "nan":
                found[3, 5] = np.nan
            return found[:, :-1] if self.how == "vocabulary" else found

        session.logits = failing  # type: ignore[method-assign]
        return session


@pytest.mark.parametrize(
    ("how", "words"),
    [("crash", "last words"), ("nan", "2 of 94 positions are not finite"),
     ("vocabulary", "511 tokens")],
)  # fmt: skip
def test_a_runtime_that_fails_fails_the_check(
    how: str,
    words: str,
    source: Checkpoint,
    runtime: LlamaCpp,
    tiny_gguf: Callable[..., Path],
    prose: Path,
) -> None:
    found = checked(tiny_gguf("Q8_0"), source, Failing(runtime, how), prose)
    assert not found.passed
    assert words in found.reasons[0]
    assert found.quantization.kl_mean < 0.01


def test_a_file_that_the_runtime_does_not_load_fails_the_check(
    source: Checkpoint, runtime: LlamaCpp, tiny_gguf: Callable[..., Path], prose: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    found = checked(tmp_path / "broken.gguf", source, runtime, prose, read=tiny_gguf("Q8_0"))
    assert not found.passed
    assert "does not load" in found.reasons[0]
    assert found.total is None


def test_a_missing_runtime_is_no_failed_check(
    source: Checkpoint, runtime: LlamaCpp, tiny_gguf: Callable[..., Path], prose: Path
) -> None:
    with pytest.raises(MissingRuntime, match="no library"):
        checked(tiny_gguf("Q8_0"), source, Failing(runtime, "missing"), prose)


def test_what_cannot_be_measured_is_refused(
    source: Checkpoint, runtime: LlamaCpp, tiny_gguf: Callable[..., Path], prose: Path
) -> None:
    out = tiny_gguf("Q8_0")
    with pytest.raises(Refused, match="--length 512"):
        checked(out, source, runtime, prose, length=513)
    with pytest.raises(Refused, match="--windows"):
        checked(out, source, runtime, prose, windows=1000)


def test_activation_blocks_follow_the_types(
    runtime: LlamaCpp, tiny_gguf: Callable[..., Path]
) -> None:
    head, gate = (512, 256), (512, 256)
    query, down = (256, 256), (256, 512)
    assert activation_blocks(runtime, TARGET.reader(tiny_gguf("BF16"))) == {}
    found = activation_blocks(runtime, TARGET.reader(tiny_gguf("Q8_0")))
    assert {found[shape].per for shape in (head, gate, query, down)} == {32}
    found = activation_blocks(runtime, TARGET.reader(tiny_gguf("Q4_0")))
    assert found[query].per == found[down].per == 32
    assert found[head].per == 256  # Q6_K
    other: Any = Failing(runtime, "")
    assert activation_blocks(other, TARGET.reader(tiny_gguf("Q8_0"))) == {}


INT8 = InputRounding("int8", 32)
LINEARS = tuple(
    f"model.layers.{layer}.{part}.weight"
    for layer in (0, 1)
    for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
)


@dataclass(frozen=True)
class Told:
    """A reader of a file that asks for int8 inputs of some linears."""

    plain: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain, name)

    def input_rounding_of(self, source: Checkpoint) -> dict[str, InputRounding]:
        assert source.model_type == "llama"
        return dict.fromkeys(LINEARS, INT8)


@dataclass(frozen=True)
class Computed:
    """A runtime that computes in transformers: exactly, and, as users run it, with int8 inputs."""

    model: Reference
    rounding: Rounding = field(default_factory=lambda: Rounding("float32"))
    plain_inputs: bool = True
    also_checked: Computed | None = None
    wrong: float = 1.0  # by which it multiplies its logits
    fails: str = ""
    label: str = "as users run it"
    name: str = "computed"
    target: str = "gguf"
    install: str = "nothing to do"
    float_type: str = "float32"

    def unavailable(self) -> str | None:
        return None

    def version(self) -> str:
        return "computed 1"

    def open(self, path: Path, *, threads: int, context: int) -> Session:
        if self.fails:
            raise RuntimeFailed("computed", self.fails)
        opened: Any = Opened(self)
        return opened


@dataclass(frozen=True)
class Opened:
    runtime: Computed

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        raise RuntimeFailed("computed", "has no tokenizer")

    def logits(self, tokens: Any) -> NDArray[np.float32]:
        with rounded(self.runtime.model, self.runtime.rounding):
            return self.runtime.model.logits(tokens) * np.float32(self.runtime.wrong)

    def close(self) -> None:
        pass


@pytest.fixture
def computed(source: Checkpoint, tiny_gguf: Callable[..., Path]) -> Computed:
    weights = TARGET.reader(tiny_gguf("Q4_0")).weights(source)
    exact = Computed(from_weights(source, weights, threads=1))
    inputs = dict.fromkeys(LINEARS, INT8)
    users = replace(exact, rounding=Rounding("float32", inputs=inputs), plain_inputs=False)
    return replace(exact, also_checked=users)


@pytest.fixture
def both_ways(
    source: Checkpoint, tiny_gguf: Callable[..., Path], prose: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., CheckReport]:  # fmt: skip
    monkeypatch.setattr("qconvert.runtimes.guarded.check_tokens", lambda *arguments: None)
    out = tiny_gguf("Q4_0")
    reader: Any = Told(TARGET.reader(out))

    def run(runtime: Computed, **options: Any) -> CheckReport:
        asked: Any = runtime
        return check(
            out, source, reader=reader, runtime=asked, text_file=prose, **{**SMALL, **options}
        )

    return run


def test_both_ways_of_a_runtime_are_judged(
    computed: Computed, both_ways: Callable[..., CheckReport]
) -> None:
    """The first computes exactly, and nothing is expected of it; the second rounds as the file
    asks, and just that is expected."""
    found = both_ways(computed)
    assert found.reasons == ()
    assert found.noise is not None
    assert found.noise.expected.kl_mean == 0
    assert found.noise.adds.kl_mean < 1e-9
    assert found.also is not None
    assert found.also.label == "as users run it"
    assert found.also.noise is not None
    assert found.also.noise.expected.kl_mean > 100 * found.noise.limit
    assert found.also.noise.adds.kl_mean == pytest.approx(found.also.noise.expected.kl_mean)
    assert found.also.noise.beyond.kl_mean < 1e-9
    assert found.also.total is not None
    assert json.loads(json.dumps(asdict(found)))["also"]["adds"]["kl_mean"] > 0
    shown = as_text(found)
    for words in ("source -> computed, as users run it (what a user gets)",
                  "as users run it: it may add"):  # fmt: skip
        assert words in shown
    assert shown.count("what a user gets") == 1


def as_text(found: CheckReport) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(check_view(found))
    out: Any = console.file
    return str(out.getvalue())


def test_rounding_does_not_excuse_the_exact_way(
    computed: Computed, both_ways: Callable[..., CheckReport]
) -> None:
    assert computed.also_checked is not None
    rounds = replace(computed, rounding=computed.also_checked.rounding)
    found = both_ways(rounds)
    (reason,) = found.reasons
    assert "computed does not compute what the file says" in reason
    assert "as users run it" not in reason


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"wrong": 1.5}, "computed, as users run it does not compute what the file says"),
        ({"fails": "crashed"}, "computed, as users run it: computed crashed"),
        ({"wrong": np.nan}, "computed, as users run it: logits at 94 of 94 positions"),
    ],
)
def test_a_fault_in_the_other_way_fails_the_check(
    change: dict[str, Any], words: str, computed: Computed, both_ways: Callable[..., CheckReport]
) -> None:
    assert computed.also_checked is not None
    found = both_ways(replace(computed, also_checked=replace(computed.also_checked, **change)))
    assert not found.passed
    assert words in found.reasons[0]
    assert all("as users run it" in reason for reason in found.reasons)
    as_text(found)


def test_max_kl_is_a_gate_for_both_ways(
    computed: Computed, both_ways: Callable[..., CheckReport]
) -> None:
    first, second = both_ways(computed, gates=Gates(max_kl=1e-6)).reasons
    assert first.startswith("the mean KL from the source")
    assert second.startswith("as users run it: the mean KL from the source")
