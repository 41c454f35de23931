"""Whole conversions of tiny models to GGUF."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from qconvert import estimate
from qconvert.asked import Asked
from qconvert.checkpoint import open_checkpoint
from qconvert.formats.refusal import Refused
from qconvert.formats.target import target_named
from qconvert.pipeline import convert as convert_by

Tiny = Callable[..., Path]
convert = partial(convert_by, asked=Asked(method="rtn"))  # weight by weight
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi3", "gpt_neox", "gpt2")
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("family", FAMILIES)
def test_floats_come_back_under_the_checkpoint_s_names(
    family: str, tiny_model: Tiny, tmp_path: Path
) -> None:
    """F32 to F32 through names, row orders and conventions of the format, and back."""
    folder = tiny_model(family)
    done = convert(folder, "gguf", type="F32", out=tmp_path)
    source = open_checkpoint(folder)
    weights = target_named("gguf").reader(done.files[0]).weights(source)
    assert set(weights) == {tensor.name for tensor in source.tensors}
    for tensor in source.tensors:
        want = source.rows(tensor, 0, tensor.shape[0] if len(tensor.shape) == 2 else 1)
        got = weights[tensor.name]
        # Gemma's norms are stored as w + 1, rounded to float32: half a unit in the last place of 2
        np.testing.assert_allclose(
            got.T if tensor.transposed else got, want, rtol=0, atol=2.0**-23, err_msg=tensor.name
        )


@pytest.mark.parametrize("type_", ["Q4_K_M", "Q3_K_M", "Q5_0", "IQ4_XS", "Q8_0", "BF16"])
def test_bytes_do_not_depend_on_threads_or_chunks(
    type_: str, tiny_model: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_model("llama", dtype="bfloat16")
    one = convert(folder, "gguf", type=type_, out=tmp_path / "1", threads=1).files[0].read_bytes()
    two = convert(folder, "gguf", type=type_, out=tmp_path / "2", threads=2).files[0].read_bytes()
    monkeypatch.setattr(estimate, "CHUNK", 7000)
    few = convert(folder, "gguf", type=type_, out=tmp_path / "3", threads=2).files[0].read_bytes()
    assert one == two == few


def test_shards_in_the_input_change_nothing(tiny_model: Tiny, tmp_path: Path) -> None:
    whole, parts = tiny_model("llama"), tiny_model("llama", shard_size="300KB")
    a = convert(whole, "gguf", bits=4, out=tmp_path / "a.gguf")
    b = convert(parts, "gguf", bits=4, out=tmp_path / "b.gguf")
    assert a.files[0].read_bytes() == b.files[0].read_bytes()


def test_the_size_is_the_planned_one(tiny_model: Tiny, tmp_path: Path) -> None:
    done = convert(tiny_model("qwen3"), "gguf", bits=5, out=tmp_path)
    assert done.nbytes == done.plan.nbytes


def test_a_weight_beyond_the_scale_is_refused_by_name(tiny_copy: Tiny, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = tiny_copy("llama")
    stored = load_file(folder / "model.safetensors")
    stored["model.layers.0.mlp.up_proj.weight"][1, 1] = 1e9
    save_file(stored, folder / "model.safetensors")
    (tmp_path / "out").mkdir()
    with pytest.raises(Refused, match=r"layers\.0\.mlp\.up_proj\.weight holds a weight too large"):
        convert(folder, "gguf", bits=4, out=tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


LIMITED = """
import resource, sys
from qconvert.asked import Asked
from qconvert.formats.refusal import Refused
from qconvert.pipeline import convert
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
try:
    convert(sys.argv[1], "gguf", bits=8, out=sys.argv[2], asked=Asked(method="rtn"))
except Refused as refused:
    print(refused)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_a_file_that_the_system_stops_short_leaves_nothing(
    tiny_model: Tiny, tmp_path: Path
) -> None:
    command = [sys.executable, "-P", "-c", LIMITED, str(tiny_model("llama")), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.startswith("the disk is full")
    assert list(tmp_path.iterdir()) == []


def test_memory_does_not_grow_with_depth(tmp_path: Path) -> None:
    """24 blocks of 8.4 MB need no more than 4 do; held in memory they would need 168 MB."""
    spec = importlib.util.spec_from_file_location("memory", ROOT / "benchmarks" / "memory.py")
    assert spec is not None
    assert spec.loader is not None
    memory = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(memory)
    peaks = []
    for blocks in (4, 24):
        folder = tmp_path / str(blocks)
        folder.mkdir()
        memory.write_checkpoint(folder / "model", blocks, 512, 2048)
        facts = memory.convert_in_child(folder / "model", "Q4_0", 2)
        peaks.append(facts["peak_bytes"])
    assert peaks[1] < peaks[0] + 30_000_000
