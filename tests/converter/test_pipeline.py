"""The way of a weight, held against a target that keeps what it is given."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qconvert import estimate, job, pipeline, resources
from qconvert.asked import Asked
from qconvert.checkpoint import Checkpoint, open_checkpoint
from qconvert.formats.refusal import Refused
from qconvert.formats.source import Source
from qconvert.formats.target import OutputTensor, Plan, Request
from qconvert.formats.tensor import QuantizedTensor

Tiny = Callable[..., Path]
RTN = Asked(method="rtn")  # weight by weight: the target here keeps what it is given
convert = partial(pipeline.convert, asked=RTN)
plan = partial(pipeline.plan, asked=RTN)
Written = dict[str, list[Any]]


class Bytes:
    """A grid of one scale per row and one byte per weight."""

    name, block, bits_per_weight, together = "BYTES", 1, 8.0, 1

    def quantize(
        self, w: NDArray[np.float32], weight: NDArray[np.float32] | None = None, *, threads: int = 1
    ) -> QuantizedTensor:
        scale = (np.abs(w).max(1, keepdims=True) / 127).astype(np.float32)
        codes = (np.rint(w / scale) + 128).astype(np.uint8)
        return QuantizedTensor(self.name, codes, {"scale": scale})

    def decode(self, tensor: QuantizedTensor) -> NDArray[np.float32]:
        scale = np.asarray(tensor.params["scale"], np.float32)
        return np.asarray((tensor.codes - np.float32(128)) * scale, np.float32)

    def pack(self, tensor: QuantizedTensor) -> NDArray[np.uint8]:
        return tensor.codes

    def unpack(self, packed: NDArray[np.uint8], cols: int) -> QuantizedTensor:
        raise AssertionError("a conversion reads nothing back")

    def row_bytes(self, cols: int) -> int:
        return cols


@dataclass
class Sink:
    """Keeps what is written, and fails when it is told to."""

    written: Written = field(default_factory=dict)
    fails_at: int = 1 << 30

    def write(self, tensor: OutputTensor, rows: QuantizedTensor | NDArray[np.float32]) -> None:
        if len(self.written) >= self.fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.written.setdefault(tensor.name, []).append(rows)


@dataclass
class Keeper:
    """A target whose output is one marker file; the weights stay in `sink`."""

    sink: Sink = field(default_factory=Sink)
    name: str = "keeper"
    summary: str = ""
    types: tuple[tuple[str, str], ...] = ()
    takes: frozenset[str] = frozenset({"bits", "type"})
    folder: bool = False

    def plan(self, source: Source, request: Request) -> Plan:
        if request.bits == 7:
            raise Refused()
        tensors = [OutputTensor("made", (3,), None, "F32", 12, None, values=np.ones(3, np.float32))]
        for tensor in source.tensors:
            quantized = len(tensor.shape) == 2 and tensor.role != "attn_o"
            order = (
                np.arange(tensor.shape[0])[::-1] if tensor.role in ("attn_q", "attn_o") else None
            )
            tensors.append(
                OutputTensor(
                    tensor.name,
                    tensor.shape,
                    Bytes() if quantized else None,
                    "BYTES" if quantized else "F32",
                    math.prod(tensor.shape) * (1 if quantized else 4),
                    tensor,
                    row_order=order,
                )
            )
        return Plan("keeper", "BYTES", tuple(tensors), "model.keeper", ("a note",), 100)

    @contextmanager
    def writer(self, plan: Plan, path: Path) -> Iterator[Sink]:
        aside = path.with_name(path.name + ".part")
        aside.write_text("kept")
        try:
            yield self.sink
            aside.rename(path)
        finally:
            aside.unlink(missing_ok=True)

    def outputs(self, plan: Plan, path: Path) -> tuple[Path, ...]:
        return (path,)

    def recognises(self, path: Path) -> bool:
        return False

    def reader(self, path: Path) -> Any:
        raise AssertionError("a conversion reads nothing back")


@pytest.fixture
def keeper(monkeypatch: pytest.MonkeyPatch) -> Keeper:
    target = Keeper()
    monkeypatch.setattr(job, "target_named", {"keeper": target}.__getitem__)
    return target


def decoded(chunks: list[Any]) -> NDArray[np.float32]:
    parts = [Bytes().decode(c) if isinstance(c, QuantizedTensor) else c for c in chunks]
    return np.concatenate(parts)


@pytest.mark.parametrize("chunk", [1, 1000, 1 << 22])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_weight_arrives_whatever_the_chunk(
    family: str,
    chunk: int,
    tiny_model: Tiny,
    keeper: Keeper,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(estimate, "CHUNK", chunk)
    folder = tiny_model(family, dtype="bfloat16")
    convert(folder, "keeper", out=tmp_path)
    source = open_checkpoint(folder)
    written = keeper.sink.written
    assert list(written) == ["made", *(tensor.name for tensor in source.tensors)]
    for tensor in source.tensors:
        want = source.rows(tensor, 0, tensor.shape[0] if len(tensor.shape) == 2 else 1)
        kept = tensor.part == "bias" or len(tensor.shape) == 1 or tensor.role == "attn_o"
        if kept:
            np.testing.assert_array_equal(decoded(written[tensor.name]), want)
        else:
            whole = Bytes().decode(Bytes().quantize(want))
            np.testing.assert_array_equal(decoded(written[tensor.name]), whole)


def test_rows_that_change_places_come_whole_and_others_in_chunks(
    tiny_model: Tiny, keeper: Keeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "CHUNK", 256 * 100)
    convert(tiny_model("llama"), "keeper", out=tmp_path)
    chunks = {name: len(parts) for name, parts in keeper.sink.written.items()}
    assert chunks["model.layers.0.self_attn.q_proj.weight"] == 1
    assert chunks["model.layers.0.self_attn.o_proj.weight"] == 1
    assert chunks["model.layers.0.self_attn.k_proj.weight"] == 2
    assert chunks["model.embed_tokens.weight"] == 6


def test_what_a_conversion_tells(tiny_model: Tiny, keeper: Keeper, tmp_path: Path) -> None:
    folder = tiny_model("llama")
    steps: list[tuple[str, int, int]] = []
    done = convert(folder, "keeper", out=tmp_path / "x", progress=lambda *step: steps.append(step))
    assert done.files == (tmp_path / "x",)
    assert done.nbytes == 4
    assert done.seconds > 0
    assert done.peak_bytes > 10_000_000
    assert done.plan.notes == ("a note",)
    weights = {name: tally.weights for name, tally in done.types.items()}
    assert sum(weights.values()) == done.plan.weights
    assert weights["F32"] == 3 + 2 * 256 * 256 + 5 * 256
    bits = 8 * (weights["BYTES"] + 4 * weights["F32"]) / done.plan.weights
    assert done.bits_per_weight == pytest.approx(bits)
    amounts = [amount for _, amount, _ in steps]
    assert amounts == sorted(amounts)
    stored = sum(tensor.nbytes for tensor in open_checkpoint(folder).tensors)
    assert steps[-1][1:] == (stored, stored)


def test_the_default_name_goes_into_a_folder_or_here(
    tiny_model: Tiny, keeper: Keeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_model("llama")
    assert job.prepare(folder, "keeper", out=tmp_path).path == tmp_path / "model.keeper"
    monkeypatch.chdir(tmp_path)
    assert convert(folder, "keeper").files[0].read_text() == "kept"
    assert (tmp_path / "model.keeper").exists()


def test_a_plan_reads_no_weight_and_writes_nothing(
    tiny_model: Tiny, keeper: Keeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoint, "rows", unread)
    job, cost = plan(tiny_model("llama"), "keeper", out=tmp_path)
    assert job.plan.type == "BYTES"
    assert cost.disk_bytes == job.plan.nbytes
    assert cost.seconds > 0
    assert 100e6 < cost.peak_bytes < 600e6
    assert list(tmp_path.iterdir()) == []


def unread(*_: object) -> NDArray[np.float32]:
    raise AssertionError("a weight was read")


# --- refusals


def refused(folder: Path, out: Path, **options: Any) -> str:
    before = sorted(out.parent.iterdir()) if out.parent.is_dir() else []
    with pytest.raises(Refused) as caught:
        convert(folder, "keeper", out=out, **options)
    assert (sorted(out.parent.iterdir()) if out.parent.is_dir() else []) == before
    return str(caught.value)


def test_bad_target_and_bad_model_are_told_together(tmp_path: Path) -> None:
    with pytest.raises(Refused) as caught:
        convert(tmp_path / "none", "no-such-target")
    assert "unknown target 'no-such-target'" in str(caught.value)
    assert "no such folder" in str(caught.value)


def test_an_output_that_exists_stays_unless_forced(
    tiny_model: Tiny, keeper: Keeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "x"
    out.write_text("precious")
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "rows", unread)
        assert "--force" in refused(tiny_model("llama"), out)
    assert out.read_text() == "precious"
    convert(tiny_model("llama"), "keeper", out=out, force=True)
    assert out.read_text() == "kept"


def test_the_model_is_not_overwritten_even_by_force(tiny_copy: Tiny, keeper: Keeper) -> None:
    folder = tiny_copy("llama")
    out = folder / "model.safetensors"
    before = out.read_bytes()
    assert "is the model itself" in refused(folder, out, force=True)
    assert out.read_bytes() == before


def test_an_output_folder_that_does_not_exist(
    tiny_model: Tiny, keeper: Keeper, tmp_path: Path
) -> None:
    assert "mkdir -p" in refused(tiny_model("llama"), tmp_path / "none" / "x")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write")
def test_an_output_folder_that_cannot_be_written(tiny_model: Tiny, keeper: Keeper) -> None:
    with pytest.raises(Refused, match="cannot write to /proc"):
        convert(tiny_model("llama"), "keeper", out="/proc/x")


def test_too_small_a_disk_is_seen_before_a_weight_is_read(
    tiny_model: Tiny, keeper: Keeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "free_bytes", lambda folder: 1000)
    monkeypatch.setattr(Checkpoint, "rows", unread)
    assert "not enough disk space" in refused(tiny_model("llama"), tmp_path / "x")


def test_a_disk_that_fills_up_midway_leaves_nothing(
    tiny_model: Tiny, keeper: Keeper, tmp_path: Path
) -> None:
    keeper.sink.fails_at = 5
    assert "the disk is full" in refused(tiny_model("llama"), tmp_path / "x")
    assert len(keeper.sink.written) == 5


def test_nan_weights_are_refused_by_name_and_leave_nothing(
    tiny_copy: Tiny, keeper: Keeper, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    folder = tiny_copy("llama")
    stored = load_file(folder / "model.safetensors")
    stored["model.layers.1.mlp.down_proj.weight"][3, 3] = np.nan
    save_file(stored, folder / "model.safetensors")
    text = refused(folder, tmp_path / "x")
    assert "model.layers.1.mlp.down_proj.weight holds NaN" in text
