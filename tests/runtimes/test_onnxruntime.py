"""The real ONNX Runtime and onnxruntime-genai on tiny models: every architecture, faults, ends.

Without them these tests fail: a skipped proof is none. `qconvert runtimes install onnxruntime`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from qconvert.asked import Asked
from qconvert.checkpoint import Checkpoint, open_checkpoint
from qconvert.formats.refusal import MissingRuntime, Refused
from qconvert.formats.target import Request, target_named
from qconvert.pipeline import convert
from qconvert.runtimes import reference
from qconvert.runtimes.check import check
from qconvert.runtimes.environments import environment, refuse_impossible
from qconvert.runtimes.findings import CheckReport
from qconvert.runtimes.noise import rounded, rounding_of
from qconvert.runtimes.onnxruntime.runtime import RECIPE, RUNTIME
from qconvert.runtimes.process import RuntimeFailed
from qconvert.runtimes.runtime import Session, runtimes

TOKENS = [5, 77, 300, 5, 12, 401, 9, 33, 250, 18, 499, 64, 7, 120, 333, 41, 6, 290, 77, 5]
TARGET = target_named("onnx")
FORMS = ("matmulnbits", "qdq")
LEAST = 1e-4  # relative: the largest difference of logits at accuracy level 1
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def folder(tiny_model: Write, tmp_path_factory: pytest.TempPathFactory) -> Write:
    """`folder(family, type, form, **model)`: each written once."""
    place = tmp_path_factory.mktemp("onnx")
    made: dict[str, Path] = {}

    def build(
        family: str = "llama", type: str = "int4", form: str = "matmulnbits", **model: Any
    ) -> Path:
        key = repr((family, type, form, sorted(model.items())))
        if key not in made:
            made[key] = place / str(len(made))
            asked = Request(own=(("onnx-form", form),))
            source = tiny_model(family, **model)
            convert(source, "onnx", type=type, out=made[key], request=asked, threads=1,
                    asked=Asked(method="rtn"))  # fmt: skip
        return made[key]

    return build


@pytest.fixture(scope="module")
def good(folder: Write) -> Path:
    return folder()


@pytest.fixture(scope="module")
def model(tiny_model: Write) -> Checkpoint:
    return open_checkpoint(tiny_model("llama"))


@pytest.fixture(scope="module")
def exact(good: Path) -> Iterator[Session]:
    with RUNTIME.open(good, threads=1, context=64) as session:
        yield session


@pytest.fixture(scope="module")
def users(good: Path) -> Iterator[Session]:
    with RUNTIME.also_checked.open(good, threads=1, context=64) as session:
        yield session


def apart(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_is_found_by_its_name() -> None:
    assert runtimes()["onnxruntime"].target == "onnx"


def test_is_usable_and_names_its_versions() -> None:
    assert RUNTIME.unavailable() is None, RUNTIME.install
    assert RUNTIME.version() == "onnxruntime 1.31.1, onnxruntime-genai 0.18.0"


def test_a_python_without_packages_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.version_info", (3, 15, 0, "final", 0))
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(Refused) as raised:
        refuse_impossible(RECIPE, environment("onnxruntime"))
    python, system = raised.value.reasons[:2]
    assert "3.15" in python.problem
    assert "3.14" in python.remedy
    assert "riscv64" in system.problem


def test_without_its_environment_it_is_missing(
    good: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("QCONVERT_RUNTIMES", str(tmp_path))
    with pytest.raises(MissingRuntime, match="qconvert runtimes install onnxruntime"):
        RUNTIME.open(good, threads=1, context=64)


CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "int4", {}),
    ("llama", "int4", {"tie_word_embeddings": True, "hidden_size": 192, "head_dim": 48}),
    ("llama", "int4,lm_head=int8,embed_tokens=float", {"tie_word_embeddings": True}),
    ("llama", "int4,v_proj=int8,lm_head=float", {"attention_bias": True, "mlp_bias": True}),
    ("llama", "float32", {"rope_scaling": {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}),
    ("llama", "int3", {}),
    ("llama", "int2", {}),
    ("llama", "int2-g16", {}),
    ("llama", "int8-g128-asym", {}),
    ("llama", "int4-g64-asym", {}),
    ("mistral", "int4", {"sliding_window": 8}),
    ("qwen2", "int4", {}),
    ("qwen3", "int4", {"tie_word_embeddings": True}),
    ("smollm3", "int4", {"no_rope_layer_interval": 2}),
    ("gemma3_text", "int4", {"sliding_window": 8}),
    ("gemma3_text", "float32", {"final_logit_softcapping": 3.0}),
    ("phi3", "int4", {}),
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("family", "type", "own"), CASES)
def test_logits_are_those_of_the_decoded_file(
    family: str, type: str, own: dict[str, Any], form: str, folder: Write, tiny_model: Write
) -> None:
    """Plain ONNX Runtime at level 1 against transformers on the weights that our reader finds; then
    onnxruntime-genai at the file's level, against the same with its rounding of inputs."""
    source = open_checkpoint(tiny_model(family, **own))
    out = folder(family, type, form, **own)
    reader: Any = TARGET.reader(out)
    decoded = reference.from_weights(source, reader.weights(source), threads=1)
    expected = decoded.logits(TOKENS)
    with RUNTIME.open(out, threads=1, context=64) as session:
        assert apart(session.logits(TOKENS), expected) < LEAST
    with RUNTIME.also_checked.open(out, threads=1, context=64) as session:
        there = session.logits(TOKENS)
        with rounded(decoded, rounding_of(RUNTIME.also_checked, session, reader, source)):
            explained = decoded.logits(TOKENS)
        whole = np.square(there - expected).mean()
        rest = np.square(there - explained).mean()
        assert whole < LEAST**2 or rest < whole  # what it rounds is what is expected of it


@pytest.mark.parametrize("form", FORMS)
def test_generation_is_greedy_by_the_logits(form: str, folder: Write) -> None:
    """onnxruntime-genai, which runs the folder with no further step, goes where the logits of plain
    ONNX Runtime point, token by token with its cache."""
    out = folder(form=form)
    for runtime in (RUNTIME, replace(RUNTIME, level=4)):
        with runtime.open(out, threads=1, context=64) as session:
            made = session.generate(TOKENS, 8)
            assert len(made) == 8
            whole = session.logits(TOKENS + made)
            assert made == whole[len(TOKENS) - 1 : -1].argmax(axis=1).tolist()


def test_both_libraries_give_the_same_logits(good: Path, users: Session) -> None:
    with replace(RUNTIME, level=4).open(good, threads=1, context=64) as plain:
        np.testing.assert_array_equal(users.logits(TOKENS), plain.logits(TOKENS))


def test_levels_differ_and_are_told(exact: Any, users: Any) -> None:
    assert 1e-3 < apart(users.logits(TOKENS), exact.logits(TOKENS)) < 0.1
    assert exact.notes == (
        "MatMulNBits at accuracy level 1; the file asks for level 4 in 11 nodes",
    )
    assert users.notes == ("MatMulNBits at its accuracy level 4 in 11 nodes",)


def test_logits_at_every_position(exact: Session) -> None:
    found = exact.logits(TOKENS)
    assert found.shape == (20, 512)
    assert found.dtype == np.float32
    np.testing.assert_allclose(exact.logits(TOKENS[:3]), found[:3], atol=1e-4)
    np.testing.assert_array_equal(exact.logits(TOKENS), found)


def test_a_context_as_long_as_the_model_s(good: Path) -> None:
    tokens = (TOKENS * 26)[:512]
    for runtime in (RUNTIME, RUNTIME.also_checked):
        with runtime.open(good, threads=1, context=512) as session:
            assert session.logits(tokens).shape == (512, 512)


def test_control_tokens(exact: Session) -> None:
    """onnxruntime-genai cannot read them as plain text: it is said, and not done wrongly."""
    assert 1 in exact.tokenize("a<s>b", special=True)
    assert exact.tokenize("a b") == exact.tokenize("a b", special=True)
    assert exact.tokenize("") == []
    with pytest.raises(Refused, match="control token"):
        exact.tokenize("a<s>b")


def test_digits_are_split_off_as_by_the_model_s_tokenizer(
    tiny_model: Write, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_model("llama"), source)
    path = source / "tokenizer.json"
    known = json.loads(path.read_text("utf-8"))
    digits = {"type": "Digits", "individual_digits": True}
    known["pre_tokenizer"] = {
        "type": "Sequence", "pretokenizers": [digits, known["pre_tokenizer"]],
    }  # fmt: skip
    path.write_text(json.dumps(known), encoding="utf-8")
    convert(source, "onnx", out=tmp_path / "out", threads=1, asked=Asked(method="rtn"))
    tokenizer = Tokenizer.from_file(str(path))
    with RUNTIME.open(tmp_path / "out", threads=1, context=64) as session:
        for text in ("1  2 12 345", "a7\t\tb", "        8", "x² and ½ of ①②", "٣٤ Ⅷ it's 1st"):
            assert session.tokenize(text) == tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_blocks_are_those_of_the_decoded_file(
    family: str, form: str, folder: Write, tiny_model: Write
) -> None:
    source, out = open_checkpoint(tiny_model(family)), folder(family, form=form)
    decoded = reference.from_weights(source, TARGET.reader(out).weights(source), threads=1)
    expected = decoded.blocks(TOKENS)
    for runtime, most in ((RUNTIME, LEAST), (RUNTIME.also_checked, 0.2)):
        with runtime.open(out, threads=1, context=64) as session:
            opened: Any = session
            before = opened.logits(TOKENS)
            found = opened.blocks(TOKENS)
            assert found.shape == (2, 20, 256)
            assert apart(found, expected) < most
            np.testing.assert_array_equal(opened.logits(TOKENS), before)


def test_blocks_that_are_not_named_are_not_seen(good: Path, tmp_path: Path) -> None:
    """A graph of another writer: said, and the session lives."""
    out = Path(shutil.copytree(good, tmp_path / "x"))
    held = onnx.load(out / "model.onnx", load_external_data=False)
    for node in held.graph.node:
        node.name = node.name.replace("/model/layers.", "/decoder/")
    onnx.save(held, out / "model.onnx")
    with RUNTIME.open(out, threads=1, context=64) as session:
        opened: Any = session
        with pytest.raises(RuntimeFailed, match="0 of its 2 blocks"):
            opened.blocks(TOKENS)
        assert opened.logits(TOKENS).shape == (20, 512)


def test_throughput_of_one_and_of_many(users: Session) -> None:
    one, many = (users.throughput(16, 4, 1, count) for count in (1, 4))
    assert (one.sequences, many.sequences) == (1, 4)
    assert min(one.prompt_tokens_per_s, one.generate_tokens_per_s) > 0
    assert min(many.prompt_tokens_per_s, many.generate_tokens_per_s) > 0
    assert users.peak_bytes() > 20e6
    with pytest.raises(Refused, match="at most"):
        users.throughput(16, 4, 1, 1000)


def test_generation_stops_after_an_end_token(good: Path, users: Session, tmp_path: Path) -> None:
    """The second token that the model makes is declared to be one."""
    made = users.generate(TOKENS, 6)
    own = Path(shutil.copytree(good, tmp_path / "x"))
    told = json.loads((own / "genai_config.json").read_text("utf-8"))
    told["model"]["eos_token_id"] = made[1]
    (own / "genai_config.json").write_text(json.dumps(told), encoding="utf-8")
    with RUNTIME.also_checked.open(own, threads=1, context=64) as stopping:
        assert stopping.generate(TOKENS, 6) == made[: made.index(made[1]) + 1]


def checked(out: Path, model: Checkpoint, prose: Path, read: Path | None = None) -> CheckReport:
    reader = TARGET.reader(read or out)
    return check(
        out, model, reader=reader, runtime=RUNTIME, text_file=prose, windows=2, length=48, threads=1
    )


@pytest.mark.parametrize("form", FORMS)
def test_a_good_folder_passes(form: str, folder: Write, model: Checkpoint, prose: Path) -> None:
    found = checked(folder(form=form), model, prose)
    assert found.reasons == ()
    assert found.noise is not None
    assert found.noise.expected.kl_mean == 0
    assert found.noise.adds.kl_mean < 1e-8
    assert found.also is not None
    assert found.also.noise is not None
    assert found.also.noise.expected.kl_mean > 1e-5
    assert found.also.noise.adds.kl_mean < 1.5 * found.also.noise.expected.kl_mean
    assert found.tokens is not None
    assert found.tokens.mismatches == 0
    assert any("U+0085" in note for note in found.notes)
    json.dumps(asdict(found))


def edited(good: Path, out: Path, change: Callable[[dict[str, NDArray[Any]]], None]) -> Path:
    """A copy with bytes of its data changed: `change` gets writable views by initializer."""
    shutil.copytree(good, out)
    stored = onnx.load(out / "model.onnx", load_external_data=False)
    data = np.memmap(out / "model.onnx.data", np.uint8, "r+")
    views: dict[str, NDArray[Any]] = {}
    for one in stored.graph.initializer:
        if not one.external_data:
            continue
        told = {entry.key: entry.value for entry in one.external_data}
        start, length = int(told["offset"]), int(told["length"])
        dtype = onnx.helper.tensor_dtype_to_np_dtype(one.data_type)
        views[one.name] = data[start : start + length].view(dtype).reshape(tuple(one.dims))
    change(views)
    data.flush()
    return out


QKV = "model.layers.0.attn.qkv_proj.MatMulNBits"
DOWN = "model.layers.1.mlp.down_proj.MatMulNBits"


def nibbles_swapped(views: dict[str, NDArray[Any]]) -> None:
    codes = views[f"{DOWN}.qweight"]
    codes[:] = codes << 4 | codes >> 4


def rows_of_q_and_k_swapped(views: dict[str, NDArray[Any]]) -> None:
    for part in ("qweight", "scales"):
        rows = views[f"{QKV}.{part}"]
        rows[:128], rows[256:384] = rows[256:384].copy(), rows[:128].copy()


def scale_off(views: dict[str, NDArray[Any]]) -> None:
    views[f"{DOWN}.scales"][:] *= 1.1


FAULTS = (nibbles_swapped, rows_of_q_and_k_swapped, scale_off)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_the_reader_does_not_see_shows_in_the_runtime(
    fault: Callable[..., None], good: Path, model: Checkpoint, prose: Path, tmp_path: Path
) -> None:
    """Writer and reader agree on a layout that is not ONNX Runtime's."""
    found = checked(edited(good, tmp_path / "x", fault), model, prose, read=good)
    assert not found.passed
    first = [reason for reason in found.reasons if "does not compute" in reason]
    assert any("onnxruntime does not compute" in reason for reason in first)
    assert found.noise is not None
    assert found.noise.adds.kl_mean > 3 * found.noise.limit


def test_one_wrong_nibble_is_seen_at_level_1(
    good: Path, model: Checkpoint, exact: Session, tmp_path: Path
) -> None:
    """At level 4 its share would drown in the rounding of activations."""

    def flip(views: dict[str, NDArray[Any]]) -> None:
        codes = views[f"{QKV}.qweight"]
        codes[3, 1, 5] ^= 0x08

    out = edited(good, tmp_path / "x", flip)
    expected = exact.logits(TOKENS)
    with RUNTIME.open(out, threads=1, context=64) as session:
        assert apart(session.logits(TOKENS), expected) > LEAST
    reader = TARGET.reader(out)
    decoded = reference.from_weights(model, reader.weights(model), threads=1)
    with RUNTIME.open(out, threads=1, context=64) as session:
        assert apart(session.logits(TOKENS), decoded.logits(TOKENS)) < LEAST


@pytest.mark.parametrize("level", [None, 1])
@pytest.mark.parametrize(
    "damage", ["cut graph", "cut data", "no data", "no config", "unknown operator"]
)
def test_a_damaged_folder_is_refused(
    damage: str, level: int | None, good: Path, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(good, tmp_path / "x"))
    graph, data = own / "model.onnx", own / "model.onnx.data"
    if damage == "cut graph":
        graph.write_bytes(graph.read_bytes()[:-100])
    elif damage == "cut data":
        data.write_bytes(data.read_bytes()[:-100_000])
    elif damage == "no data":
        data.unlink()
    elif damage == "no config":
        (own / "genai_config.json").unlink()
    else:
        held = onnx.load(graph, load_external_data=False)
        held.graph.node[-1].op_type = "MatMulNibbles"
        onnx.save(held, graph)
    with pytest.raises(Refused) as raised:
        replace(RUNTIME, level=level).open(own, threads=1, context=64)
    (reason,) = raised.value.reasons
    assert "\n" not in reason.problem
