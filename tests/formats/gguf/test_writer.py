"""The file appears whole, as planned, in order, or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from qconvert.checkpoint import open_checkpoint
from qconvert.formats.gguf.target import TARGET
from qconvert.formats.refusal import Refused
from qconvert.formats.target import OutputTensor, Plan, Request

Tiny = Callable[..., Path]
Write = Callable[..., Path]


@pytest.mark.parametrize("split", [None, 300_000])
def test_the_files_are_as_large_as_planned(
    split: int | None, tiny_model: Tiny, write: Write, tmp_path: Path
) -> None:
    source = open_checkpoint(tiny_model("llama"))
    plan = TARGET.plan(source, Request(type="Q4_K_M", split_bytes=split))
    write(plan, source, tmp_path / "out.gguf")
    files = TARGET.outputs(plan, tmp_path / "out.gguf")
    assert sorted(files) == sorted(tmp_path.iterdir())
    assert sum(file.stat().st_size for file in files) == plan.nbytes
    assert (len(files) > 1) == (split is not None)


def test_gguf_py_reads_what_was_written(tiny_model: Tiny, write: Write, tmp_path: Path) -> None:
    source = open_checkpoint(tiny_model("gemma3_text", num_hidden_layers=7))
    plan = TARGET.plan(source, Request(type="Q4_K_M"))
    found = gguf.GGUFReader(write(plan, source, tmp_path / "out.gguf"))
    for entry in plan.details["entries"]:
        field = found.get_field(entry.key)
        assert field is not None
        value = field.contents()
        expected = list(entry.value) if entry.sub_kind is not None else entry.value
        if gguf.GGUFValueType.FLOAT32 in (entry.kind, entry.sub_kind):
            assert np.allclose(value, expected, rtol=1e-7)
        else:
            assert value == expected
    assert [tensor.name for tensor in found.tensors] == [tensor.name for tensor in plan.tensors]
    ours = TARGET.reader(tmp_path / "out.gguf")
    for tensor in found.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(values.reshape(ours.tensors[tensor.name].shape),
                              ours.decode(tensor.name))  # fmt: skip


def test_rows_in_parts_make_the_same_file(tiny_model: Tiny, write: Write, tmp_path: Path) -> None:
    source = open_checkpoint(tiny_model("qwen2"))
    for type in ("Q4_K_M", "BF16"):
        plan = TARGET.plan(source, Request(type=type))
        whole = write(plan, source, tmp_path / "whole.gguf")
        with TARGET.writer(plan, tmp_path / "parts.gguf") as sink:
            for tensor in plan.tensors:
                assert tensor.source is not None
                rows = 1 if len(tensor.shape) == 1 else tensor.shape[0]
                for start in range(0, rows, 100):
                    part = source.rows(tensor.source, start, min(start + 100, rows))
                    sink.write(tensor, part if tensor.grid is None else tensor.grid.quantize(part))
        assert (tmp_path / "parts.gguf").read_bytes() == whole.read_bytes()


def test_a_copy_under_another_name_makes_the_same_file(
    tiny_model: Tiny, write: Write, tmp_path: Path
) -> None:
    folder = tiny_model("llama")
    copy = Path(shutil.copytree(folder, tmp_path / "another name"))
    made = []
    for one in (folder, copy):
        source = open_checkpoint(one)
        path = tmp_path / f"{len(made)}.gguf"
        made.append(write(TARGET.plan(source, Request(type="F16")), source, path).read_bytes())
    assert made[0] == made[1]


def _send(plan: Plan, path: Path, calls: Iterable[tuple[OutputTensor, Any]]) -> None:
    with TARGET.writer(plan, path) as sink:
        for tensor, rows in calls:
            sink.write(tensor, rows)


def test_nothing_is_left_when_the_block_fails(fake_source: Any, tmp_path: Path) -> None:
    source = fake_source("llama")
    plan = TARGET.plan(source, Request(type="F32", split_bytes=600_000))

    def calls() -> Iterator[tuple[OutputTensor, Any]]:
        yield plan.tensors[0], source.rows(plan.tensors[0].source, 0, 64)
        assert list(tmp_path.iterdir()) != []
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _send(plan, tmp_path / "x.gguf", calls())
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_stays_until_the_new_one_is_whole(
    fake_source: Any, write: Write, tmp_path: Path
) -> None:
    source, path = fake_source("llama"), tmp_path / "x.gguf"
    path.write_bytes(b"old")
    plan = TARGET.plan(source, Request(type="F32"))
    with pytest.raises(ValueError, match="21 tensors were not written"):
        _send(plan, path, [])
    assert path.read_bytes() == b"old"
    write(plan, source, path)
    assert path.stat().st_size == plan.nbytes


def test_tensors_out_of_order_twice_or_too_long_are_errors(
    fake_source: Any, tmp_path: Path
) -> None:
    source = fake_source("llama")
    plan = TARGET.plan(source, Request(type="F32"))
    first, second = plan.tensors[:2]
    rows = source.rows(first.source, 0, first.shape[0])
    misuse = {
        f"{second.name} was written where {first.name} is due": [(second, rows)],
        f"{first.name} was written where {second.name} is due": [(first, rows), (first, rows)],
        f"{first.name}: rows 0 \\+ 65 of 64": [(first, np.concatenate([rows, rows[:1]]))],
        f"{first.name}: .* bytes in 64 rows": [(first, rows[:, :32])],
    }
    for message, calls in misuse.items():
        with pytest.raises(ValueError, match=message):
            _send(plan, tmp_path / "x.gguf", calls)
    assert list(tmp_path.iterdir()) == []


def test_a_reordered_tensor_must_come_whole(fake_source: Any, tmp_path: Path) -> None:
    source = fake_source("llama")
    plan = TARGET.plan(source, Request(type="F32"))
    calls = []
    for tensor in plan.tensors:
        rows = 1 if len(tensor.shape) == 1 else tensor.shape[0]
        stop = 10 if tensor.row_order is not None else rows
        calls.append((tensor, source.rows(tensor.source, 0, stop)))
    with pytest.raises(ValueError, match=r"blk\.0\.attn_q\.weight: rows 0 \+ 10 of 256"):
        _send(plan, tmp_path / "x.gguf", calls)


@pytest.mark.parametrize(
    ("value", "type", "said"),
    [
        (70000.0, "F16", "token_embd.weight: 70000 is too large for F16"),
        (3.4e38, "BF16", "token_embd.weight: 3.4e\\+38 is too large for BF16"),
        (np.nan, "F32", "token_embd.weight: the weights hold NaN or Inf"),
    ],
)
def test_a_weight_that_does_not_fit_is_refused_by_name(
    value: float, type: str, said: str, fake_source: Any, tmp_path: Path
) -> None:
    source = fake_source("llama")
    plan = TARGET.plan(source, Request(type=type))
    rows = source.rows(plan.tensors[0].source, 0, 64)
    rows[3, 5] = value
    with pytest.raises(Refused, match=said):
        _send(plan, tmp_path / "x.gguf", [(plan.tensors[0], rows)])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_the_systems_error(
    fake_source: Any, tmp_path: Path
) -> None:
    plan = TARGET.plan(fake_source("llama"), Request(type="F32"))
    with pytest.raises(OSError, match="No such file"):
        _send(plan, tmp_path / "missing" / "x.gguf", [])


def test_codes_of_another_grid_are_an_error(fake_source: Any, tmp_path: Path) -> None:
    source = fake_source("llama")
    plan = TARGET.plan(source, Request(type="Q8_0"))
    other = TARGET.plan(source, Request(type="Q4_0")).tensors[0]
    assert other.grid is not None
    codes = other.grid.quantize(source.rows(other.source, 0, 64))
    with pytest.raises(ValueError, match="wants codes of Q8_0"):
        _send(plan, tmp_path / "x.gguf", [(replace(other, dtype="Q8_0"), codes)])
