"""benchmarks/calibrated.py and peers.py run on a tiny model; packed codes are read rightly."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import packed

    return packed


def run(script: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", str(BENCHMARKS / script), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_ggml_with_importance_is_judged(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    """16 blocks: llama.cpp then changes the type of the first two when it has importance."""
    prose = tmp_path / "prose.txt"
    prose.write_text("The quick brown fox jumps over the lazy dog, twice. " * 40, encoding="utf-8")
    small = {"num_hidden_layers": 16, "vocab_size": 320}
    done = run(
        "calibrated.py", tiny_model("llama", **small), "--calib", prose, "--text", prose,
        "--calib-rows", 2, "--calib-length", 32, "--windows", 2, "--length", 32,
        "--pure", "Q4_0,Q6_K", "--types", "Q4_0", "--methods", "", "--no-code", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["type"], line["pure"]) for line in lines] == [
        ("Q4_0", True), ("Q6_K", True), ("Q4_0", False), ("Q4_0", False),
    ]  # fmt: skip
    coarse, fine, own, same = lines
    assert 0 < fine["text"]["kl_mean"] < coarse["text"]["kl_mean"]
    assert set(own["types_unlike_qconvert"].values()) == {"Q4_1"}
    assert same["types_unlike_qconvert"] == {}
    assert own["tensor_bytes"] > same["tensor_bytes"]


def words(codes: np.ndarray) -> np.ndarray:
    """[..., 8] codes of 4 bits -> [...] words, the first code lowest."""
    total = (codes.astype(np.uint64) << np.arange(0, 32, 4, dtype=np.uint64)).sum(-1)
    return total.astype(np.uint32).view(np.int32)


def sample() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes [8, 32], scales [8, 2], the weights they stand for."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (8, 32))
    scale = rng.integers(1, 9, (8, 2)).astype(np.float32) / 8
    return codes, scale, (codes - 8).astype(np.float32) * np.repeat(scale, 16, axis=1)


def of(**tensors: np.ndarray) -> dict[str, Any]:
    return {f"p.{name}": torch.from_numpy(np.ascontiguousarray(v)) for name, v in tensors.items()}


def test_compressed_tensors_are_decoded(packed: ModuleType) -> None:
    codes, scale, weights = sample()
    tensors = of(
        weight_packed=words(codes.reshape(8, 4, 8)),
        weight_scale=scale,
        weight_shape=np.array([8, 32]),
    )
    assert np.array_equal(packed.compressed_tensors("p", tensors), weights)


def test_gptq_is_decoded_and_its_order_checked(packed: ModuleType) -> None:
    codes, scale, weights = sample()
    tensors = of(
        qweight=words(codes.reshape(8, 4, 8)).T,
        scales=scale.T,
        qzeros=np.full((2, 1), 0x77777777, np.int32),
        g_idx=np.arange(32, dtype=np.int32) // 16,
    )
    assert np.array_equal(packed.gptq("p", tensors), weights)
    with pytest.raises(ValueError, match="order of the columns"):
        packed.gptq("p", {**tensors, **of(g_idx=np.arange(32, dtype=np.int32) % 2)})
    with pytest.raises(ValueError, match="not symmetric"):
        packed.gptq("p", {**tensors, **of(qzeros=np.full((2, 1), 0x77777776, np.int32))})


def test_peers_explain_themselves(tmp_path: Path) -> None:
    done = run("peers.py", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--llmcompressor" in done.stdout
