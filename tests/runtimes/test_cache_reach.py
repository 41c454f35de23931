"""Scales of a KV cache beside what the model keeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from qconvert.asked import Asked
from qconvert.checkpoint import open_checkpoint
from qconvert.formats.target import Request, target_named
from qconvert.pipeline import convert
from qconvert.runtimes import reference
from qconvert.runtimes.cache_reach import Kept, cache_findings, judged

TOKENS = list(np.random.default_rng(0).integers(3, 500, 64))


def keys(*reaches: float) -> list[str]:
    found = [Kept(block, "k_scale", 0.1, reach) for block, reach in enumerate(reaches)]
    return [one.culprit for one in judged(found)]


def test_what_is_cut_off_and_what_is_no_scale_of_the_block() -> None:
    assert keys(0.7, 1.0, 1.6, 1.1) == []
    assert keys(0.7, 0.3, 1.0) == ["model.layers.1.self_attn.k_scale"]
    assert keys(1.0, 1.1, 40.0) == ["model.layers.2.self_attn.k_scale"]
    assert keys(30.0, 50.0, 40.0) == []  # scales of 1 throughout: nobody has measured them


@pytest.fixture(scope="module")
def good(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """(model, output with an FP8 cache)"""
    model, out = tiny_model("llama"), tmp_path_factory.mktemp("cache") / "out"
    asked = Asked(method="rtn", calib_rows=4, calib_length=64)
    request = Request(scheme="w8a16", kv="fp8")
    convert(model, "vllm", request=request, out=out, threads=1, asked=asked)
    return model, out


@pytest.mark.parametrize("factor", [1.0, 0.05, None])
def test_the_scale_of_one_block(
    factor: float | None, good: tuple[Path, Path], tmp_path: Path
) -> None:
    """`None`: it is lost, and runtimes take 1."""
    source, out = open_checkpoint(good[0]), tmp_path / "out"
    out.mkdir()
    for file in good[1].iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    tensors = dict(load_file(out / "model.safetensors"))
    name = "model.layers.1.self_attn.k_scale"
    if factor is None:
        del tensors[name]
    else:
        tensors[name] = tensors[name] * factor
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    reader = target_named("vllm").reader(out)
    model = reference.from_weights(source, reader.weights(source), threads=1)
    found = [one.culprit for one in cache_findings(model, reader, TOKENS)]
    assert found == ([] if factor == 1.0 else [name])
