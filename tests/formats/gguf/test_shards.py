"""Split outputs: llama.cpp's names and keys, loaded as one model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qconvert.checkpoint import open_checkpoint
from qconvert.formats.gguf.target import TARGET
from qconvert.formats.refusal import Refused
from qconvert.formats.target import Request

LIMIT = 900_000


@pytest.fixture
def split(
    tiny_model: Callable[..., Path], write: Callable[..., Path], tmp_path: Path
) -> list[Path]:
    source = open_checkpoint(tiny_model("llama"))
    plan = TARGET.plan(source, Request(type="F32", split_bytes=LIMIT))
    write(plan, source, tmp_path / "out.gguf")
    write(TARGET.plan(source, Request(type="F32")), source, tmp_path / "whole.gguf")
    return list(TARGET.outputs(plan, tmp_path / "out.gguf"))


def test_names_and_sizes_follow_the_convention(split: list[Path]) -> None:
    count = len(split)
    assert count > 3
    assert [file.name for file in split] == [
        f"out-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)
    ]
    assert all(file.stat().st_size <= LIMIT for file in split)


def test_llama_loads_the_first_file_as_the_whole_model(split: list[Path]) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    found = []
    for path in (split[0], split[0].with_name("whole.gguf")):
        llama = llama_cpp.Llama(
            str(path), n_ctx=256, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False
        )
        llama.eval([5, 9, 300, 17])
        found.append(np.array(llama.scores[:4]))
        llama.close()
    assert np.array_equal(*found)


@pytest.mark.parametrize("which", ["out.gguf", 0, -1])
def test_any_name_opens_all_files(which: Any, split: list[Path]) -> None:
    path = split[which] if isinstance(which, int) else split[0].with_name(which)
    assert TARGET.recognises(path)
    reader, whole = TARGET.reader(path), TARGET.reader(split[0].with_name("whole.gguf"))
    assert list(reader.tensors) == list(whole.tensors)
    assert reader.files == tuple(split)
    for name in whole.tensors:
        assert np.array_equal(reader.decode(name), whole.decode(name))


def test_a_missing_file_is_refused_by_name(split: list[Path]) -> None:
    split[2].unlink()
    with pytest.raises(Refused, match=f"no such file: .*{split[2].name}"):
        TARGET.reader(split[0])


def test_files_under_exchanged_names_are_refused(split: list[Path]) -> None:
    first, second = split[1].read_bytes(), split[2].read_bytes()
    split[1].write_bytes(second)
    split[2].write_bytes(first)
    with pytest.raises(Refused, match="says it is file 2 of"):
        TARGET.reader(split[0])


def test_a_limit_below_one_tensor_is_refused_with_the_least(fake_source: Any) -> None:
    with pytest.raises(Refused) as refused:
        TARGET.plan(fake_source("llama"), Request(type="F32", split_bytes=100_000))
    assert "makes a file of" in refused.value.reasons[0].problem
    assert refused.value.reasons[0].remedy.startswith("allow files of at least 26")


def test_a_limit_above_the_size_leaves_one_plain_file(fake_source: Any, tmp_path: Path) -> None:
    plan = TARGET.plan(fake_source("llama"), Request(type="F32", split_bytes=10**12))
    assert TARGET.outputs(plan, tmp_path / "x.gguf") == (tmp_path / "x.gguf",)
    assert plan.nbytes == TARGET.plan(fake_source("llama"), Request(type="F32")).nbytes
