"""Every family through whole calibrated conversions: the file computes what the model computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qconvert.asked import Asked
from qconvert.calibrate import tokens_of
from qconvert.checkpoint import open_checkpoint
from qconvert.engine.bundle import open_bundle
from qconvert.formats.source import Source
from qconvert.formats.target import target_named
from qconvert.pipeline import convert
from qconvert.runtimes import reference

Tiny = Callable[..., Path]
ROWS, LENGTH = 24, 32
CLOSE = 0.04  # of the energy of the logits: 4 bits on weights without any structure
GAIN = 0.6  # of the error without calibration


OPTIONS = {"llama": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}}
CASES = [
    *((family, "best") for family in (
        "llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma3_text", "phi3", "gpt_neox", "gpt2",
    )),
    *((family, "quarot+best") for family in ("llama", "qwen2", "qwen3", "phi3")),
    *((family, "awq+gptq") for family in ("llama", "gemma3_text", "phi3", "gpt_neox", "gpt2")),
    *((family, "smoothquant+best") for family in ("mistral", "gpt2")),
    *((family, "osplus+gptq") for family in ("gpt2", "gpt_neox")),
]  # fmt: skip


def logits(model: reference.Reference, tokens: np.ndarray) -> np.ndarray:
    return np.concatenate([model.logits(row) for row in tokens.tolist()])


def output_error(folder: Path, scratch: Path, method: str) -> float:
    """Energy of what is wrong in the logits on the calibration rows, relative to theirs."""
    work, out = scratch / "work", scratch / f"{method}.gguf"
    asked = Asked(method=method, calib_rows=ROWS, calib_length=LENGTH, work=work, keep_work=True)
    done = convert(folder, type="Q4_K_M", out=out, threads=1, asked=asked)
    source: Source = open_checkpoint(folder)
    tokens = tokens_of(source, asked).tokens
    if done.calibrated is not None:
        source = open_bundle(work)  # rotated, a tied head stands by itself
        np.testing.assert_array_equal(np.load(work / "tokens.npy"), tokens)
    weights = target_named("gguf").reader(out).weights(source)
    found = logits(reference.from_weights(source, weights, threads=1), tokens)
    want = logits(reference.from_folder(folder, threads=1), tokens)
    centred = want - want.mean(-1, keepdims=True)
    off = np.square(found - want, dtype=np.float64).sum()
    return float(off / np.square(centred, dtype=np.float64).sum())


@pytest.fixture(scope="module")
def plain(tiny_model: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], float]:
    """The error without calibration, of each family once."""
    found: dict[str, float] = {}

    def error(family: str) -> float:
        if family not in found:
            folder = tiny_model(family, **OPTIONS.get(family, {}))
            found[family] = output_error(folder, tmp_path_factory.mktemp("rtn"), "rtn")
        return found[family]

    return error


@pytest.mark.parametrize(("family", "method"), CASES)
def test_closer_than_without_calibration(
    tiny_model: Tiny, plain: Callable[[str], float], tmp_path: Path, family: str, method: str
) -> None:
    found = output_error(tiny_model(family, **OPTIONS.get(family, {})), tmp_path, method)
    assert found < CLOSE
    assert found < GAIN * plain(family)
