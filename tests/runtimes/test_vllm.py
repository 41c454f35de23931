"""The real vLLM on a tiny model: every form that a CPU runs, faults that it must show, its ends.

Without vLLM these tests fail: a skipped proof is none. `make setup` builds its environment.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from qconvert.asked import Asked
from qconvert.checkpoint import Checkpoint, open_checkpoint
from qconvert.formats.refusal import Refused
from qconvert.formats.target import Request, target_named
from qconvert.pipeline import convert
from qconvert.runtimes import reference
from qconvert.runtimes.check import check
from qconvert.runtimes.environments import environment
from qconvert.runtimes.findings import CheckReport
from qconvert.runtimes.process import BOOTSTRAP, RuntimeFailed
from qconvert.runtimes.runtime import Session, runtimes
from qconvert.runtimes.session import WorkerSession
from qconvert.runtimes.vllm import ENVIRONMENT, RUNTIME, Vllm

TOKENS = [5, 77, 300, 5, 12, 401, 9, 33]
QUICK = Asked(method="rtn", calib_rows=4, calib_length=64)
Tensors = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def vllm() -> Iterator[Vllm]:
    """vLLM, imported once: each folder is loaded in a fork."""
    worker = RUNTIME.worker(threads=1)
    yield replace(RUNTIME, running=worker)
    worker.close()


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Path]) -> Checkpoint:
    return open_checkpoint(tiny_model("llama", dtype="float16"))


@pytest.fixture(scope="module")
def folder(model: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`folder("w4a16-g128", "gptq", kv=None) -> Path`: each written once."""
    place = tmp_path_factory.mktemp("served")

    def build(type: str, container: str | None = None, kv: str | None = None) -> Path:
        out = place / f"{type}-{container}-{kv}"
        if not out.exists():
            asked = Request(container=container, kv=kv)
            convert(model.folder, "vllm", type=type, out=out, request=asked, threads=1, asked=QUICK)
        return out

    return build


def checked(
    out: Path, model: Checkpoint, vllm: Vllm, prose: Path, read: Path | None = None
) -> CheckReport:
    reader = target_named("vllm").reader(read or out)
    return check(
        out, model, reader=reader, runtime=vllm, text_file=prose, windows=2, length=48, threads=1
    )


def test_is_found_by_its_name() -> None:
    assert runtimes()["vllm"].target == "vllm"


def test_is_usable_and_names_its_versions() -> None:
    assert RUNTIME.unavailable() is None, RUNTIME.install
    assert "vllm" in RUNTIME.version()
    assert "torch" in RUNTIME.version()


@pytest.mark.parametrize(
    ("type", "container", "kv", "most"),
    [
        ("f16", None, None, 3e-6),
        ("w4a16-g128", "compressed-tensors", None, 3e-6),
        ("w4a16-g128-asym", "compressed-tensors", None, 3e-6),
        ("w4a16-g128", "gptq", None, 3e-6),
        ("w4a16-g128-asym", "awq", None, 3e-6),
        ("w8a8", "compressed-tensors", None, 2e-3),
        ("w8a8-static", "compressed-tensors", None, 2e-3),
        ("fp8-channel", "compressed-tensors", None, 7e-3),
        ("w4a16-g128", "compressed-tensors", "fp8", 1e-2),
    ],
)
def test_a_good_folder_passes(
    type: str,
    container: str | None,
    kv: str | None,
    most: float,
    folder: Callable[..., Path],
    model: Checkpoint,
    vllm: Vllm,
    prose: Path,
) -> None:
    """`most`: mean KL from the decoded file, rounded as vLLM rounds, to vLLM. Activations near a
    tie fall to the other side in another order of summation, hence more where they are rounded."""
    found = checked(folder(type, container, kv), model, vllm, prose)
    assert found.reasons == ()
    assert found.noise is not None
    assert found.noise.beyond.kl_mean < most
    assert found.tokens is not None
    assert found.tokens.mismatches == 0
    if container is not None:
        assert any("Kernel for" in note for note in found.notes)
    json.dumps(asdict(found))


def test_a_folder_for_tensorrt_llm_runs_in_vllm(
    model: Checkpoint, vllm: Vllm, prose: Path, tmp_path: Path
) -> None:
    """FP8 with a scale for each row and each token: the one scheme of theirs that a CPU runs.

    The same rounding as of compressed-tensors, so at the same distance from the reference.
    """
    target: Any = target_named("trtllm")
    out = tmp_path / "trtllm"
    convert(model.folder, "trtllm", type="fp8-channel", out=out, threads=1, asked=QUICK)
    assert target.also_read_by(out) == ("vllm",)
    found = check(
        out, model, reader=target.reader(out), runtime=vllm, text_file=prose, windows=2, length=48,
        threads=1,
    )  # fmt: skip
    assert found.reasons == ()
    assert found.noise is not None
    assert found.noise.beyond.kl_mean < 7e-3
    assert found.noise.adds.kl_mean > 1e-4  # activations are rounded
    assert any("FP8ScaledMM" in note for note in found.notes)


def nibbles_swapped(name: str, words: NDArray[Any]) -> NDArray[Any]:
    bits = words.view(np.uint32)
    return ((bits & 0x0F0F0F0F) << 4 | (bits >> 4) & 0x0F0F0F0F).view(np.int32)


def off_by_one(name: str, words: NDArray[Any]) -> NDArray[Any]:
    """Every zero point is one less, as where a reader of GPTQ's convention reads AWQ's."""
    bits = words.view(np.uint32)
    pieces = [((bits >> np.uint32(4 * at) & 15) - 1 & 15) << np.uint32(4 * at) for at in range(8)]
    return np.bitwise_or.reduce(pieces).astype(np.uint32).view(np.int32)


def halved(name: str, scales: NDArray[Any]) -> NDArray[Any]:
    return (scales / 2).astype(scales.dtype)


def edited(good: Path, out: Path, part: str, change: Callable[..., NDArray[Any]]) -> Path:
    """A copy of a folder with the tensors that end in `part` changed."""
    shutil.copytree(good, out)
    path = out / "model.safetensors"
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    tensors: Tensors = load_file(path)
    names = [name for name in tensors if name.endswith(part)]
    assert names
    for name in names:
        tensors[name] = change(name, tensors[name])
    save_file(tensors, path, metadata=metadata)
    return out


@pytest.mark.parametrize(
    ("type", "container", "part", "change"),
    [
        ("w4a16-g128", "compressed-tensors", "down_proj.weight_packed", nibbles_swapped),
        ("w4a16-g128", "gptq", "down_proj.qweight", nibbles_swapped),
        ("w4a16-g128-asym", "compressed-tensors", "weight_zero_point", off_by_one),
        ("w4a16-g128-asym", "awq", "qzeros", off_by_one),
        ("w8a8", "compressed-tensors", "o_proj.weight_scale", halved),
    ],
)
def test_a_fault_that_the_reader_does_not_see_shows_in_vllm(
    type: str,
    container: str,
    part: str,
    change: Callable[..., NDArray[Any]],
    folder: Callable[..., Path],
    model: Checkpoint,
    vllm: Vllm,
    prose: Path,
    tmp_path: Path,
) -> None:
    """Writer and reader agree on a layout that is not vLLM's."""
    good = folder(type, container)
    found = checked(edited(good, tmp_path / "x", part, change), model, vllm, prose, read=good)
    assert [reason for reason in found.reasons if "does not compute" in reason]
    assert found.noise is not None
    assert found.noise.adds.kl_mean > 3 * found.noise.limit


@pytest.fixture(scope="module")
def session(vllm: Vllm, folder: Callable[..., Path]) -> Iterator[Session]:
    """The last tests use it: loading another folder ends it."""
    with vllm.open(folder("w4a16-g128", "gptq"), threads=1, context=64) as opened:
        yield opened


def test_logits_at_every_position(session: Session) -> None:
    found = session.logits(TOKENS)
    assert found.shape == (8, 512)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    np.testing.assert_allclose(session.logits(TOKENS[:3]), found[:3], atol=0.05)
    np.testing.assert_allclose(session.logits(TOKENS[:1]), found[:1], atol=0.05)
    np.testing.assert_array_equal(session.logits(TOKENS), found)


def test_greedy_generation_follows_the_logits(session: Session) -> None:
    made = session.generate(TOKENS, 5)
    assert len(made) == 5
    whole = session.logits(TOKENS + made)
    assert made == whole[len(TOKENS) - 1 : -1].argmax(axis=1).tolist()


def test_special_tokens_are_parsed_when_asked(session: Session) -> None:
    assert 1 not in session.tokenize("a<s>b")
    assert 1 in session.tokenize("a<s>b", special=True)


def test_blocks_are_those_of_the_decoded_file(
    folder: Callable[..., Path], model: Checkpoint, session: Any
) -> None:
    weights = target_named("vllm").reader(folder("w4a16-g128", "gptq")).weights(model)
    expected = reference.from_weights(model, weights, threads=1).blocks(TOKENS)
    before = session.logits(TOKENS)
    found = session.blocks(TOKENS)
    assert found.shape == expected.shape == (2, 8, 256)
    apart = np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert apart.mean() < 3e-3  # of float16
    np.testing.assert_array_equal(session.logits(TOKENS), before)


def test_throughput_of_one_and_of_many(session: Session) -> None:
    one, many = (session.throughput(16, 4, 1, count) for count in (1, 8))
    assert (one.sequences, many.sequences) == (1, 8)
    assert many.generate_tokens_per_s > one.generate_tokens_per_s > 0
    assert session.peak_bytes() > 100e6
    with pytest.raises(Refused, match="at most"):
        session.throughput(16, 4, 1, 1000)


def test_generation_stops_after_an_end_token(
    vllm: Vllm, folder: Callable[..., Path], tmp_path: Path
) -> None:
    """The second token that the model makes is declared to be one."""
    good = folder("w4a16-g128", "gptq")
    with vllm.open(good, threads=1, context=64) as plain:
        made = plain.generate(TOKENS, 6)
    own = Path(shutil.copytree(good, tmp_path / "x"))
    for name in ("config.json", "generation_config.json"):
        told = json.loads((own / name).read_text("utf-8"))
        (own / name).write_text(json.dumps({**told, "eos_token_id": made[1]}), encoding="utf-8")
    with vllm.open(own, threads=1, context=64) as stopping:
        assert stopping.generate(TOKENS, 6) == made[: made.index(made[1]) + 1]


def test_what_vllm_does_not_take_is_one_line(
    vllm: Vllm, folder: Callable[..., Path], tmp_path: Path
) -> None:
    own = Path(shutil.copytree(folder("w4a16-g128", "gptq"), tmp_path / "x"))
    told = json.loads((own / "config.json").read_text("utf-8"))
    told["quantization_config"]["group_size"] = 16
    (own / "config.json").write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(Refused) as raised:
        vllm.open(own, threads=1, context=64)
    (reason,) = raised.value.reasons
    assert "group_size = 16" in reason.problem
    assert "\n" not in reason.problem
    with pytest.raises(Refused, match="no model folder"):
        vllm.open(tmp_path / "nothing", threads=1, context=64)


PUBLIC = """
import json, runpy, sys
import numpy as np
runpy.run_path(sys.argv[1])["make_importable"](__import__("pathlib").Path(sys.argv[1]).parent.parent)
from qconvert.runtimes.vllm_engine import Engine
from vllm import SamplingParams
tokens = json.loads(sys.argv[3])
engine = Engine()
engine.load(sys.argv[2], 1, 64, ("float16",), True, True)
ours = engine.logits(np.array(tokens, np.int32)).arrays[0]
engine._llm.llm_engine.model_config.max_logprobs = -1
ask = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=-1, logprobs=-1, detokenize=False)
(done,) = engine._llm.generate([{"prompt_token_ids": tokens}], ask, use_tqdm=False)
rows = [*done.prompt_logprobs[1:], done.outputs[0].logprobs[0]]
theirs = np.array([[row[token].logprob for token in range(512)] for row in rows])
ours, theirs = (rows - rows.max(1, keepdims=True) for rows in (ours, theirs))
print(float(np.abs(ours - theirs).max()))
"""


def test_recorded_logits_are_those_of_the_public_interface(folder: Callable[..., Path]) -> None:
    python = environment("vllm").python
    arguments = [str(BOOTSTRAP), str(folder("w4a16-g128", "gptq")), json.dumps(TOKENS)]
    done = subprocess.run(
        [str(python), "-P", "-c", PUBLIC, *arguments],
        env={**os.environ, **ENVIRONMENT, "TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout.splitlines()[-1]) < 1e-5


def test_a_crash_is_one_error_and_leaves_no_process(folder: Callable[..., Path]) -> None:
    """Also as it is served: in the file's own type, with the kernels that vLLM chooses."""
    with RUNTIME.served.open(folder("w4a16-g128", "gptq"), threads=1, context=64) as session:
        assert isinstance(session, WorkerSession)
        (fork,) = psutil.Process(session.pid).children()
        assert np.isfinite(session.logits(TOKENS)).all()
        fork.send_signal(signal.SIGSEGV)
        with pytest.raises(RuntimeFailed, match="SIGSEGV") as raised:
            session.logits(TOKENS)
        assert raised.value.crashed
        assert psutil.wait_procs([fork], timeout=10)[1] == []
        assert not psutil.pid_exists(session.pid)
