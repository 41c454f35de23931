"""The real TVM on tiny models: every scheme and family, faults that it must show, its ends.

Without TVM's environment these tests fail: a skipped proof is none. `make setup` builds it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from qconvert.asked import Asked
from qconvert.checkpoint import Checkpoint, open_checkpoint
from qconvert.formats.refusal import Refused
from qconvert.formats.target import Request, target_named
from qconvert.pipeline import convert
from qconvert.runtimes import reference
from qconvert.runtimes.check import check
from qconvert.runtimes.findings import CheckReport
from qconvert.runtimes.process import RuntimeFailed
from qconvert.runtimes.runtime import Session, runtimes
from qconvert.runtimes.session import WorkerSession
from qconvert.runtimes.tvm.runtime import LABEL, RECIPE, RUNTIME, Tvm

TOKENS = [5, 77, 300, 5, 12, 401, 9, 33, 500, 2, 71]
CONFIG = "mlc-chat-config.json"
ODD: dict[str, Any] = {"hidden_size": 144, "intermediate_size": 200, "vocab_size": 509}
"""No multiple of a group, nor of the 16 rows and lanes of our kernels."""
LLAMA3: dict[str, Any] = {
    "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
    }
}  # fmt: skip


@pytest.fixture(scope="module")
def tvm() -> Iterator[Tvm]:
    """TVM, imported once: each folder takes the place of the one before."""
    worker = RUNTIME.worker(threads=1)
    yield replace(RUNTIME, running=worker)
    worker.close()


@pytest.fixture(scope="module")
def source(tiny_model: Callable[..., Path]) -> Callable[..., Checkpoint]:
    def build(family: str = "llama", **own: Any) -> Checkpoint:
        return open_checkpoint(tiny_model(family, dtype="float16", **own))

    return build


@pytest.fixture(scope="module")
def folder(
    source: Callable[..., Checkpoint], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """`folder("q4f16_1", "llama", compatible=False) -> Path`: each written once."""
    place = tmp_path_factory.mktemp("mlc")
    written: dict[str, Path] = {}

    def build(type: str, family: str = "llama", compatible: bool = False, **own: Any) -> Path:
        key = repr((type, family, compatible, sorted(own.items())))
        if key not in written:
            out = place / str(len(written))
            asked = Request(own=(("mlc-compatible", "yes"),) if compatible else ())
            convert(
                source(family, **own).folder, "mlc", type=type, out=out, request=asked, threads=1,
                asked=Asked(method="rtn"),
            )  # fmt: skip
            written[key] = out
        return written[key]

    return build


def checked(
    out: Path, model: Checkpoint, runtime: Tvm, prose: Path, read: Path | None = None
) -> CheckReport:
    reader = target_named("mlc").reader(read or out)
    return check(
        out, model, reader=reader, runtime=runtime, text_file=prose, windows=2, length=48, threads=1
    )


def decoded_logits(out: Path, model: Checkpoint) -> NDArray[np.float32]:
    weights = target_named("mlc").reader(out).weights(model)
    return reference.from_weights(model, weights, threads=1).logits(TOKENS)


def relative(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_is_found_by_its_name_and_pins_what_it_installs() -> None:
    assert runtimes()["tvm"].target == "mlc"
    asked = [word for words in RECIPE.commands for word in words[1:] if not word.startswith("-")]
    assert all("==" in word for word in asked)


def test_is_usable_and_says_what_it_is() -> None:
    assert RUNTIME.unavailable() is None, RUNTIME.install
    assert "apache-tvm 0.27.0.post1" in RUNTIME.version()
    assert LABEL in RUNTIME.version()
    assert "not MLCEngine" in LABEL


@pytest.mark.parametrize(
    ("type", "family", "own"),
    [
        ("q4f16_1", "llama", {}),
        ("q4f16_2", "llama", {}),
        ("q4f16_0", "llama", ODD),
        ("q4f32_1", "llama", {}),
        ("q4bf16_1", "llama", {}),
        ("q3f16_1", "llama", ODD),
        ("q3f16_0", "llama", {}),
        ("q0f16", "llama", ODD),
        ("q4f16_1", "llama", {**ODD, **LLAMA3, "tie_word_embeddings": True}),
        ("q4f16_1", "mistral", {"sliding_window": 32}),
        ("q4f16_1", "qwen2", {"tie_word_embeddings": True}),
        ("q4f16_1", "qwen3", {"attention_bias": True}),
        ("q4f16_1", "gemma", {}),
    ],
    ids=str,
)
def test_logits_are_those_of_the_decoded_file(
    type: str,
    family: str,
    own: dict[str, Any],
    folder: Callable[..., Path],
    source: Callable[..., Checkpoint],
    tvm: Tvm,
) -> None:
    """By both kernels: of one token, and of many; and written in two steps."""
    out = folder(type, family, **own)
    expected = decoded_logits(out, source(family, **own))
    with tvm.open(out, threads=1, context=32) as session:
        assert relative(session.logits(TOKENS), expected) < 3e-6
        assert relative(session.logits(TOKENS[:1]), expected[:1]) < 3e-6
        made = session.generate(TOKENS, 4)
        whole = session.logits(TOKENS + made)
        assert made == whole[len(TOKENS) - 1 : -1].argmax(axis=1).tolist()


@pytest.mark.parametrize("type", ["q4f16_1", "q3f16_1", "q4bf16_1"])
def test_products_are_rounded_as_mlc_rounds_them(
    type: str, folder: Callable[..., Path], source: Callable[..., Checkpoint], tvm: Tvm
) -> None:
    """Scales of MLC's own rule have all their bits: code times scale is no number of the dtype."""
    out = folder(type, compatible=True)
    expected = decoded_logits(out, source())
    with tvm.open(out, threads=1, context=32) as session:
        assert isinstance(session, WorkerSession)
        assert any("rounded to " in note for note in session.notes)
        assert relative(session.logits(TOKENS), expected) < 3e-6
        made = session.generate(TOKENS, 4)
        whole = session.logits(TOKENS + made)
        assert made == whole[len(TOKENS) - 1 : -1].argmax(axis=1).tolist()


def test_a_good_folder_passes(
    folder: Callable[..., Path], source: Callable[..., Checkpoint], tvm: Tvm, prose: Path
) -> None:
    found = checked(folder("q4f16_1"), source(), tvm, prose)
    assert found.reasons == ()
    assert found.noise is not None
    assert found.noise.adds.kl_mean < 1e-8
    assert found.tokens is not None
    assert found.tokens.mismatches == 0
    assert LABEL in found.notes
    assert LABEL in found.runtime.version


def one_nibble(name: str, words: NDArray[Any]) -> NDArray[Any]:
    words[3, 1] ^= 0x80
    return words


def rows_swapped(name: str, words: NDArray[Any]) -> NDArray[Any]:
    words[[0, 1]] = words[[1, 0]]
    return words


def one_scale(name: str, scales: NDArray[Any]) -> NDArray[Any]:
    scales[5, 2] *= 2
    return scales


def edited(
    good: Path, out: Path, name: str, change: Callable[[str, NDArray[Any]], NDArray[Any]]
) -> Path:
    """A copy of a folder with one tensor changed in place; its md5 is left as it was, as the
    loader's is no check."""
    shutil.copytree(good, out)
    cache = json.loads((out / "tensor-cache.json").read_text("utf-8"))
    (shard, record), *more = [
        (shard["dataPath"], record)
        for shard in cache["records"]
        for record in shard["records"]
        if record["name"] == name
    ]
    assert not more
    data = bytearray((out / shard).read_bytes())
    start, nbytes = record["byteOffset"], record["nbytes"]
    array = np.frombuffer(bytes(data[start : start + nbytes]), record["dtype"])
    changed = change(name, array.reshape(record["shape"]).copy())
    data[start : start + nbytes] = changed.tobytes()
    (out / shard).write_bytes(bytes(data))
    return out


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("mlp.down_proj.q_weight", one_nibble),
        ("self_attn.qkv_proj.q_weight", rows_swapped),
        ("mlp.gate_up_proj.q_scale", one_scale),
    ],
)
def test_a_fault_that_the_reader_does_not_see_shows_in_tvm(
    part: str,
    change: Callable[..., NDArray[Any]],
    folder: Callable[..., Path],
    source: Callable[..., Checkpoint],
    tvm: Tvm,
    prose: Path,
    tmp_path: Path,
) -> None:
    good = folder("q4f16_1")
    bad = edited(good, tmp_path / "x", f"model.layers.0.{part}", change)
    found = checked(bad, source(), tvm, prose, read=good)
    assert [reason for reason in found.reasons if "does not compute" in reason]
    assert found.noise is not None
    assert found.noise.adds.kl_mean > 3 * found.noise.limit


def test_needs_no_compiler_and_a_process_of_its_own_ends(
    folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with RUNTIME.open(folder("q4f16_1"), threads=2, context=32) as opened:
        assert isinstance(opened, WorkerSession)
        assert np.isfinite(opened.logits(TOKENS)).all()
        pid = opened.pid
    assert not psutil.pid_exists(pid)


@pytest.fixture(scope="module")
def session(tvm: Tvm, folder: Callable[..., Path]) -> Iterator[Session]:
    """The last tests use it: loading another folder ends it."""
    with tvm.open(folder("q4f16_1"), threads=1, context=320) as opened:
        yield opened


def test_logits_at_every_position(session: Session) -> None:
    """Also of more tokens than one step takes."""
    many = (TOKENS * 30)[:300]
    found = session.logits(many)
    assert found.shape == (300, 512)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    np.testing.assert_allclose(session.logits(many[:3]), found[:3], atol=1e-4)
    np.testing.assert_array_equal(session.logits(many), found)
    made = session.generate(many, 2)
    assert made[0] == found[-1].argmax()


def test_special_tokens_are_parsed_when_asked(session: Session) -> None:
    assert 1 not in session.tokenize("a<s>b")
    assert 1 in session.tokenize("a<s>b", special=True)


def test_blocks_are_those_of_the_decoded_file(
    folder: Callable[..., Path], source: Callable[..., Checkpoint], session: Any
) -> None:
    """Of more tokens than one step has, by a graph that is compiled when they are asked for."""
    model, tokens = source(), (TOKENS * 30)[:300]
    weights = target_named("mlc").reader(folder("q4f16_1")).weights(model)
    expected = reference.from_weights(model, weights, threads=1).blocks(tokens)
    before = session.logits(tokens)
    found = session.blocks(tokens)
    assert found.shape == expected.shape == (2, 300, 256)
    assert relative(found, expected) < 1e-5
    np.testing.assert_array_equal(session.logits(tokens), before)


def test_throughput(session: Session) -> None:
    found = session.throughput(16, 4, 2)
    assert found.sequences == 1
    assert found.repetitions == 2
    slowest, fastest = found.generate_spread
    assert 0 < slowest <= found.generate_tokens_per_s <= fastest
    assert found.prompt_tokens_per_s > 0
    assert found.cpu_share is not None
    assert session.peak_bytes() > 50e6
    with pytest.raises(Refused, match="one sequence"):
        session.throughput(16, 4, 1, 8)


def test_more_than_the_context_is_an_error(session: Session) -> None:
    with pytest.raises(RuntimeFailed, match="do not fit"):
        session.logits([1] * 330)


def configured(good: Path, out: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    shutil.copytree(good, out)
    told = json.loads((out / CONFIG).read_text("utf-8"))
    change(told)
    (out / CONFIG).write_text(json.dumps(told), encoding="utf-8")
    return out


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda told: told.update(model_type="falcon"), "'falcon'.*llama, mistral, qwen2"),
        (lambda told: told.update(quantization="e4m3_e4m3_f16"), "'e4m3_e4m3_f16'.*q4f16_1"),
        (
            lambda told: told["model_config"].update(rope_scaling={"rope_type": "yarn"}),
            "rotary positions of the type 'yarn'",
        ),
        (lambda told: told["model_config"].update(hidden_act="relu"), "activation 'relu'"),
        (lambda told: told["model_config"].update(vocab_size=600), r"should be uint32 \[600, 32\]"),
        (lambda told: told["model_config"].update(tie_word_embeddings=True), "lm_head.*unknown"),
        (lambda told: told["model_config"].update(context_window_size=16), "16 positions"),
        (lambda told: told.pop("model_config"), "no whole MLC folder"),
    ],
)
def test_what_our_graph_does_not_compute_is_refused_by_name(
    change: Callable[[dict[str, Any]], object],
    reason: str,
    tvm: Tvm,
    folder: Callable[..., Path],
    tmp_path: Path,
) -> None:
    own = configured(folder("q4f16_1"), tmp_path / "x", change)
    with pytest.raises(Refused, match=reason) as raised:
        tvm.open(own, threads=1, context=32)
    assert "\n" not in raised.value.reasons[0].problem


def test_a_file_that_tvm_does_not_read_is_refused(
    tvm: Tvm, folder: Callable[..., Path], tmp_path: Path
) -> None:
    own = Path(shutil.copytree(folder("q4f16_1"), tmp_path / "x"))
    shard = next(own.glob("params_shard_*.bin"))
    os.truncate(shard, shard.stat().st_size - 4)
    with pytest.raises(Refused, match=r"params_shard|size|nbytes"):
        tvm.open(own, threads=1, context=32)
    with pytest.raises(Refused, match="no MLC folder"):
        tvm.open(tmp_path / "nothing", threads=1, context=32)


def test_generation_stops_after_an_end_token(
    tvm: Tvm, folder: Callable[..., Path], tmp_path: Path
) -> None:
    """The second token that the model makes is declared to be one."""
    with tvm.open(folder("q4f16_1"), threads=1, context=32) as plain:
        made = plain.generate(TOKENS, 6)
    own = configured(
        folder("q4f16_1"), tmp_path / "x", lambda told: told.update(eos_token_id=[made[1]])
    )
    with tvm.open(own, threads=1, context=32) as stopping:
        assert stopping.generate(TOKENS, 6) == made[: made.index(made[1]) + 1]
