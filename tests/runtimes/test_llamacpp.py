"""llama.cpp on a tiny model: logits, generation, rates, memory, and its ways of failing."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qconvert.formats.refusal import MissingRuntime, Refused
from qconvert.runtimes import llamacpp_binding, llamacpp_blocks
from qconvert.runtimes.llamacpp import LIBRARY_NAMES, LIBRARY_VARIABLE, LlamaCpp
from qconvert.runtimes.process import RuntimeFailed
from qconvert.runtimes.protocol import WorkerError
from qconvert.runtimes.runtime import Session, runtimes
from qconvert.runtimes.session import WorkerSession
from qconvert.runtimes.text import read_tokenizer

TOKENS = [5, 77, 300, 5, 12, 401, 9, 33]


@pytest.fixture(scope="module")
def session(runtime: LlamaCpp, tiny_gguf: Callable[..., Path]) -> Iterator[Session]:
    with runtime.open(tiny_gguf("Q8_0"), threads=1, context=64) as opened:
        yield opened


@pytest.fixture
def own_build(runtime: LlamaCpp, tmp_path: Path) -> Path:
    """A copy of the package's shared libraries: a stand-in for a build of the user's own."""
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None
    assert spec.origin is not None
    return Path(shutil.copytree(Path(spec.origin).parent / "lib", tmp_path / "own"))


def library_in(folder: Path) -> Path:
    return next(folder / name for name in LIBRARY_NAMES if (folder / name).exists())


def test_is_found_by_its_name() -> None:
    assert runtimes()["llamacpp"].target == "gguf"


def test_is_usable_and_names_its_versions(runtime: LlamaCpp) -> None:
    assert runtime.unavailable() is None
    assert "llama-cpp-python" in runtime.version()


def test_logits_at_every_position(session: Session) -> None:
    found = session.logits(TOKENS)
    assert found.shape == (8, 512)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    # Causal: what follows changes nothing before. The batch may be multiplied by other kernels.
    np.testing.assert_allclose(session.logits(TOKENS[:3]), found[:3], atol=0.05)


def test_calls_start_from_an_empty_context(session: Session) -> None:
    first = session.logits(TOKENS)
    session.generate([1, 2, 3], 4)
    np.testing.assert_array_equal(session.logits(TOKENS), first)


def test_several_batches_give_what_one_gives(
    runtime: LlamaCpp, tiny_gguf: Callable[..., Path], session: Session
) -> None:
    """llama.cpp's batch is 2048 tokens: the rest comes in a second one."""
    tokens = np.random.default_rng(0).integers(5, 512, 2100).tolist()
    with runtime.open(tiny_gguf("F32"), threads=1, context=2100) as long:
        whole = long.logits(tokens)
        assert whole.shape == (2100, 512)
        np.testing.assert_allclose(long.logits(tokens[:2048]), whole[:2048], atol=1e-4)


def test_greedy_generation_follows_the_logits(session: Session) -> None:
    made = session.generate(TOKENS, 6)
    assert len(made) == 6
    logits = session.logits([*TOKENS, *made[:-1]])[len(TOKENS) - 1 :]
    best = logits.max(axis=1)
    chosen = logits[np.arange(6), made]
    np.testing.assert_allclose(chosen, best, atol=0.05)
    assert session.generate(TOKENS, 1) == made[:1]


def test_generation_stops_after_an_end_token(
    session: Session, tiny_gguf: Callable[..., Path], runtime: LlamaCpp
) -> None:
    """Where the tiny model says its end token after some prompt, nothing follows."""
    end = 2
    for first in range(5, 512):
        if int(session.logits([first])[-1].argmax()) == end:
            assert session.generate([first], 5) == [end]
            return
    pytest.fail("no single token is followed by the end token: take another seed")


def test_tokenizes_as_the_model_does(session: Session, tiny_model: Callable[..., Path]) -> None:
    tokenizer = read_tokenizer(tiny_model("llama"))
    assert tokenizer is not None
    text = "<|im_start|>user\nHëllo, wörld\x00!<|im_end|>"
    expected = tokenizer.encode(text, add_special_tokens=False).ids
    assert session.tokenize(text, special=True) == expected
    assert session.tokenize(text) != expected
    assert session.tokenize("") == []


def test_throughput_says_what_it_depends_on(session: Session) -> None:
    found = session.throughput(32, 4, 3)
    assert (found.prompt_tokens, found.generate_tokens, found.repetitions) == (32, 4, 3)
    assert found.threads == 1
    assert 1 <= found.batch <= 512
    low, high = found.prompt_spread
    assert 0 < low <= found.prompt_tokens_per_s <= high
    low, high = found.generate_spread
    assert 0 < low <= found.generate_tokens_per_s <= high
    assert found.cpu_share is not None
    assert 0 < found.cpu_share < 1.5


def test_a_warm_session_is_timed_at_once(session: Session) -> None:
    found = session.throughput(16, 2, 1, warm=False)
    assert len(found.prompt_rates) == len(found.generate_rates) == 1
    assert found.first_token_s == pytest.approx(16 / found.prompt_rates[0])


def test_blocks_are_seen_in_a_context_of_their_own(session: Any) -> None:
    before = session.logits(TOKENS)
    found = session.blocks(TOKENS)
    assert found.shape == (2, 8, 256)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(session.logits(TOKENS), before)
    np.testing.assert_array_equal(session.blocks(TOKENS), found)


def test_blocks_of_a_prompt_of_several_batches(
    runtime: LlamaCpp, tiny_gguf: Callable[..., Path]
) -> None:
    """More than llama.cpp's batch of 2048 tokens, which it computes in steps of 512."""
    tokens = np.random.default_rng(0).integers(5, 512, 2100).tolist()
    with runtime.open(tiny_gguf("F32"), threads=1, context=2100) as long:
        opened: Any = long
        found = opened.blocks(tokens)
        assert found.shape == (2, 2100, 256)
        np.testing.assert_allclose(opened.blocks(tokens[:100]), found[:, :100], atol=1e-3)


def test_blocks_that_are_not_named_are_not_seen(
    runtime: LlamaCpp, tiny_gguf: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a build of llama.cpp that names its tensors otherwise: said, and the session lives."""
    library = llamacpp_binding.Library()
    opened = llamacpp_binding.Model(
        library, str(tiny_gguf("F32")), threads=1, context=64, repack=False
    )
    monkeypatch.setattr(llamacpp_blocks, "OUTPUT", re.compile(rb"block_out-(\d+)"))
    with pytest.raises(WorkerError, match="shows blocks"):
        llamacpp_blocks.blocks(library, opened, np.array(TOKENS, np.int32))
    assert opened.logits(np.array(TOKENS, np.int32)).shape == (8, 512)


def test_peak_memory_is_the_worker_s_own(runtime: LlamaCpp, tiny_gguf: Callable[..., Path]) -> None:
    ballast = np.ones(500_000_000, np.uint8)  # 500 MB in this process
    with runtime.open(tiny_gguf("Q8_0"), threads=1, context=64) as opened:
        assert 10_000_000 < opened.peak_bytes() < 400_000_000
    assert ballast[-1] == 1


def test_more_tokens_than_the_context(session: Session) -> None:
    with pytest.raises(RuntimeFailed, match="context"):
        session.logits([5] * 5000)
    assert session.logits([5]).shape == (1, 512)


def test_a_file_that_does_not_load_is_refused(
    runtime: LlamaCpp, tiny_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    whole = tiny_gguf("Q8_0").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.gguf").write_text("not a model", encoding="utf-8")
    for name in ("cut.gguf", "text.gguf", "missing.gguf"):
        with pytest.raises(Refused, match=name):
            runtime.open(tmp_path / name, threads=1, context=16)


def test_a_killed_worker_is_one_error(runtime: LlamaCpp, tiny_gguf: Callable[..., Path]) -> None:
    opened = runtime.open(tiny_gguf("Q8_0"), threads=1, context=16)
    assert isinstance(opened, WorkerSession)
    os.kill(opened.pid, signal.SIGTERM)
    with pytest.raises(RuntimeFailed, match=r"llama\.cpp crashed \(SIGTERM\)"):
        opened.logits([5])
    opened.close()


def test_a_build_whose_repacked_kernels_crash_is_used_without_them(
    runtime: LlamaCpp, tiny_gguf: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    plain = LlamaCpp._open

    def opened(self: LlamaCpp, *args: Any, repack: bool, **options: Any) -> Session:
        asked.append(repack)
        if repack:
            raise RuntimeFailed("llama.cpp", "crashed (SIGSEGV)", crashed=True)
        return plain(self, *args, repack=repack, **options)

    monkeypatch.setattr(LlamaCpp, "_open", opened)
    with runtime.open(tiny_gguf("Q8_0"), threads=1, context=16) as session:
        assert session.logits([5]).shape == (1, 512)
        assert "SIGSEGV" in getattr(session, "notes", ("",))[0]
    assert asked == [True, False]


def test_a_build_of_the_user_s_own(own_build: Path, tiny_gguf: Callable[..., Path]) -> None:
    runtime = LlamaCpp(library=own_build)
    assert runtime.unavailable() is None
    assert str(own_build) in runtime.version()
    with runtime.open(tiny_gguf("F16"), threads=1, context=16) as session:
        assert session.logits([5, 6]).shape == (2, 512)


def test_the_environment_names_a_build_too(
    own_build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIBRARY_VARIABLE, str(own_build))
    assert str(own_build) in LlamaCpp().version()


def test_a_folder_without_a_library(tmp_path: Path) -> None:
    reason = LlamaCpp(library=tmp_path).unavailable()
    assert reason is not None
    assert str(tmp_path) in reason
    with pytest.raises(MissingRuntime):
        LlamaCpp(library=tmp_path).version()


def test_a_library_that_is_none(own_build: Path) -> None:
    library_in(own_build).write_text("not a library", encoding="utf-8")
    reason = LlamaCpp(library=own_build).unavailable()
    assert reason is not None
    assert "does not load" in reason


def test_a_library_that_lacks_symbols(own_build: Path) -> None:
    library = library_in(own_build)
    other = next(path for path in own_build.iterdir() if "ggml-base" in path.name)
    library.unlink()
    shutil.copy(other, library)
    reason = LlamaCpp(library=own_build).unavailable()
    assert reason is not None
    assert "does not fit" in reason


def test_a_library_laid_out_otherwise(runtime: LlamaCpp, monkeypatch: pytest.MonkeyPatch) -> None:
    """A default value found in the wrong place is what another layout looks like."""
    expected = {**llamacpp_binding.DEFAULTS, "llama_context_params": {"n_batch": 2047}}
    monkeypatch.setattr(llamacpp_binding, "DEFAULTS", expected)
    with pytest.raises(WorkerError) as raised:
        llamacpp_binding.Library()
    assert raised.value.kind == "missing"
    assert "n_batch is 2048 and not 2047" in raised.value.message


def test_a_missing_package_gives_the_pip_line(tmp_path: Path) -> None:
    """An empty `llama_cpp` package stands before the real one."""
    (tmp_path / "llama_cpp").mkdir()
    (tmp_path / "llama_cpp" / "__init__.py").write_text("", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        runtime = replace(LlamaCpp(), library=None)
        reason = runtime.unavailable()
    assert reason is not None
    assert "no module" in reason
    assert "qconvert runtimes install llamacpp" in runtime.install
