"""Text from the model itself: drawn as LLM-QAT says, the same for one seed whatever the threads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from numpy.typing import NDArray

from qconvert.calibration import selfmade
from qconvert.calibration.rows import Wanted, calibration
from qconvert.calibration.sampling import GREEDY, Choose, Tokens, drawn, sample_rows
from qconvert.calibration.selfmade import WholeModel
from qconvert.calibration.vocabulary import read_vocabulary
from qconvert.formats.refusal import Refused

CONFIG = {"vocab_size": 512, "eos_token_id": 2}


class Bigrams:
    """A `Sampler` whose logits follow from the last token alone."""

    def __init__(self, table: NDArray[np.float32], batch: int) -> None:
        self.table, self.batch = table, batch

    def generate(self, start: Tokens, length: int, choose: Choose) -> Tokens:
        rows = np.zeros((len(start), length), np.int32)
        rows[:, : start.shape[1]] = start
        for begin in range(0, len(start), self.batch):
            which = np.arange(begin, min(begin + self.batch, len(start)))
            for position in range(start.shape[1], length):
                logits = self.table[rows[which, position - 1]]
                rows[which, position] = choose(which, position, logits)
        return rows


def table(seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((512, 512)).astype(np.float32)


@pytest.fixture
def folder(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model()


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def test_draws_follow_the_softmax() -> None:
    logits = np.log(np.array([0.5, 0.2, 0.3], np.float32))
    at = (np.arange(1000) + 0.5) / 1000
    counts = np.bincount([drawn(logits, one) for one in at], minlength=3)
    assert counts.tolist() == [500, 200, 300]
    assert drawn(np.array([0, -np.inf], np.float32), 1 - 2**-53) == 0
    assert drawn(np.full(7, 3e4, np.float32), 0.5) == 3  # no overflow


def test_first_tokens_then_greedy_then_drawn(folder: Path) -> None:
    known, model = read_vocabulary(folder), Bigrams(table(), 64)
    found = sample_rows(model, known, {**CONFIG, "eos_token_id": None}, 40, 24, seed=0)
    best = model.table.argmax(1)
    assert found[:, 0].min() >= 5  # the special tokens come first in this vocabulary
    assert len(set(found[:, 0].tolist())) > 25
    follows = found[:, 1:] == best[found[:, :-1]]
    assert follows[:, :GREEDY].all()
    assert 0 < follows[:, GREEDY:].mean() < 0.5


def test_a_row_begins_anew_after_the_end_of_a_text(folder: Path) -> None:
    logits = table()
    logits[:, 2] += 6  # ends often
    model = Bigrams(logits, 64)
    found = sample_rows(model, read_vocabulary(folder), CONFIG, 40, 32, seed=0)
    ends = [(r, c) for r, c in np.argwhere(found == 2) if c + 2 < 32]
    assert len(ends) > 40
    after = np.array([found[r, c + 1] for r, c in ends])
    assert len(set(after.tolist())) > 25
    assert after.min() >= 5
    assert all(found[r, c + 2] == logits[found[r, c + 1]].argmax() for r, c in ends)


def test_batches_do_not_matter_and_seeds_do(folder: Path) -> None:
    known = read_vocabulary(folder)
    one, same, more, other = (
        sample_rows(Bigrams(table(), batch), known, CONFIG, rows, 24, seed)
        for batch, rows, seed in ((8, 12, 0), (5, 12, 0), (8, 20, 0), (8, 12, 1))
    )
    assert (one == same).all()
    assert (one == more[:12]).all()
    assert (one != other).any()


def test_logits_that_are_not_finite(folder: Path) -> None:
    broken = table()
    broken[:, 7] = np.nan
    with pytest.raises(Refused, match="not finite at position 1"):
        sample_rows(Bigrams(broken, 8), read_vocabulary(folder), CONFIG, 4, 16, 0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_whole_model_with_one_and_two_threads(
    family: str, tiny_model: Callable[..., Path]
) -> None:
    folder = tiny_model(family)
    config, before = config_of(folder), torch.get_num_threads()
    wanted = Wanted("self", rows=18, length=40)
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(calibration(folder, config, wanted, WholeModel(folder, config)))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert found[0].digest == found[1].digest
    assert found[0].origin == "self"
    assert found[0].tokens.shape == (18, 40)


def test_the_cache_changes_nothing(folder: Path) -> None:
    """Greedy tokens are the best by logits that are computed on the whole row at once."""
    from transformers import AutoModelForCausalLM

    config = config_of(folder)
    found = sample_rows(WholeModel(folder, config), read_vocabulary(folder), config, 6, 12, seed=1)
    auto: Any = AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype="float32", attn_implementation="eager")
    with torch.inference_mode():
        logits = model(torch.from_numpy(found.astype(np.int64))).logits.numpy()
    picked = np.take_along_axis(logits[:, :GREEDY], found[:, 1 : GREEDY + 1, None], 2)[..., 0]
    assert (logits[:, :GREEDY].max(2) - picked).max() < 1e-4


def test_the_tokenizer_s_bos_stands_in_front(tiny_copy: Callable[..., Path]) -> None:
    folder = tiny_copy()
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "add_bos_token": True}))
    found = sample_rows(Bigrams(table(), 8), read_vocabulary(folder), CONFIG, 4, 16, 0)
    assert found[:, 0].tolist() == [1] * 4
    assert found[:, 1].min() >= 5


def test_memory_is_asked_for_before_loading(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(folder)
    model = WholeModel(folder, config)
    need = model.needs(64, 512)
    weights = (folder / "model.safetensors").stat().st_size
    cache = 2 * 16 * 512 * 2 * 2 * 64 * 4  # keys and values, rows, length, blocks, heads, head
    assert need > 1.1 * (weights + cache)
    assert model.needs(16, 512) == need > model.needs(8, 512)
    monkeypatch.setattr(
        psutil, "virtual_memory", lambda: type("Memory", (), {"available": need - 1})
    )
    monkeypatch.setattr(selfmade.WholeModel, "_load", lambda self: pytest.fail("loaded"))
    with pytest.raises(Refused, match="whole model in memory"):
        model.generate(np.zeros((64, 1), np.int32), 512, lambda *_: np.zeros(0, np.int32))
