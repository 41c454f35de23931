"""benchmarks/scaled_mm.py: the product of stored FP8 tensors is that of the decoded ones. torch
computes it on a CPU, too; times are taken on a GPU only."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from qconvert.asked import Asked
from qconvert.formats.target import Request, target_named
from qconvert.pipeline import convert

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
BFLOAT16 = 2**-8
"""Twice the largest relative error of its rounding."""


@pytest.fixture
def scaled_mm(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import scaled_mm

    return scaled_mm


@pytest.fixture(scope="module")
def folder(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> object:
    def write(scheme: str) -> Path:
        out = tmp_path_factory.mktemp("fp8") / scheme
        asked = Asked(method="rtn", calib_rows=4, calib_length=32, compute="float32")
        model = tiny_model("llama", dtype="bfloat16")
        convert(model, "trtllm", out=out, request=Request(scheme=scheme), asked=asked, threads=1)
        return out

    return write


@pytest.mark.parametrize(("scheme", "dims"), [("fp8", 0), ("fp8-channel", 1)])
def test_the_product_is_that_of_what_we_decode(
    scheme: str, dims: int, folder: Callable[[str], Path], scaled_mm: ModuleType
) -> None:
    path = folder(scheme)
    found = list(scaled_mm.linears(path))
    shapes = [tuple(one.weight.shape) for one in found]
    assert sorted(shapes) == [(128, 256), (256, 256), (256, 512), (512, 256)]
    reader = target_named("trtllm").reader(path)
    for one in found:
        assert one.scale.dim() == dims
        assert (one.inputs is None) == (dims == 1)
        np.testing.assert_array_equal(one.floats.numpy(), reader.decode(f"{one.name}.weight"))
        wide = one.to("cpu", 2)
        assert torch.equal(wide.floats, one.floats.repeat(2, 2))
        for linear in (one, wide):
            x = scaled_mm.activations(linear, 48)
            off = scaled_mm.errors(linear, x)
            assert off["error"] < BFLOAT16
            assert BFLOAT16 < off["error_of_rounding"] < 0.05


def test_another_scale_is_another_product(
    folder: Callable[[str], Path], scaled_mm: ModuleType
) -> None:
    one = next(scaled_mm.linears(folder("fp8-channel")))
    x = scaled_mm.activations(one, 16)
    bits, scale = scaled_mm.rounded(one, x)
    right = scaled_mm.product(one, bits, scale).float()
    turned = scaled_mm.Linear(one.name, one.weight, one.scale.flip(0), None)
    assert scaled_mm.distance(scaled_mm.product(turned, bits, scale).float(), right) > 0.05
    with pytest.raises(ValueError, match="one side has a scale for each row"):
        scaled_mm.product(one, bits, scale[0, 0])


def test_other_folders_are_named(folder: Callable[[str], Path], scaled_mm: ModuleType) -> None:
    with pytest.raises(ValueError, match="scales of blocks"):
        list(scaled_mm.linears(folder("fp8-block")))
    with pytest.raises(ValueError, match="no weights in FP8"):
        list(scaled_mm.linears(folder("w8a16")))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so it measures")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-P", str(BENCHMARKS / "scaled_mm.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "torch._scaled_mm, not TensorRT-LLM" in done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="times are taken on a GPU")
def test_on_a_gpu_it_measures(folder: Callable[[str], Path], scaled_mm: ModuleType) -> None:
    linear = next(scaled_mm.linears(folder("fp8"))).to("cuda", 2)
    found = scaled_mm.line(linear, 32, 0.01)
    assert found["what"] == "torch._scaled_mm, not TensorRT-LLM"
    assert found["error"] < BFLOAT16
    assert found["ratio"] > 0
