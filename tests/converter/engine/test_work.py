"""Whatever happens to a work folder, what was finished stays, and what is read was written."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qconvert.asked import Asked
from qconvert.checkpoint import Checkpoint
from qconvert.engine import work as works
from qconvert.engine.parts import Stored
from qconvert.engine.work import work_bytes
from qconvert.formats.refusal import Refused
from qconvert.pipeline import convert

Tiny = Callable[..., Path]
DATA_FREE = Path(__file__).with_name("data_free.py")


@pytest.fixture
def model(tiny_model: Tiny) -> Path:
    return tiny_model("llama", dtype="bfloat16")


@pytest.fixture
def folder(free: Any, model: Path, tmp_path: Path) -> Path:
    """A finished work folder."""
    found: Path = free.finished(model, tmp_path / "work", "Q4_0")
    return found


@pytest.fixture
def child(model: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a process that writes blocks for ever, and wait until it is at it."""
    started = []

    def start(**options: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-P", str(DATA_FREE), str(model), str(tmp_path / "work"), "Q4_0"]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
        )
        started.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def files(folder: Path) -> set[str]:
    return {one.relative_to(folder).as_posix() for one in folder.rglob("*") if one.is_file()}


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 0x10
    path.write_bytes(raw)


def refused(free: Any, model: Path, folder: Path, *options: Any, **more: Any) -> str:
    before = {name: (folder / name).read_bytes() for name in files(folder)}
    with pytest.raises(Refused) as caught:
        free.begin(model, folder, *options, **more)
    after = {name: (folder / name).read_bytes() for name in files(folder)}
    assert {n: raw for n, raw in after.items() if n != "lock"} == {
        n: raw for n, raw in before.items() if n != "lock"
    }
    return str(caught.value)


# --- what is written is what is read


def test_a_block_comes_back_as_it_was(free: Any, model: Path, folder: Path) -> None:
    work, job = free.begin(model, folder)
    with work:
        assert work.resumed
        assert work.store.missing() == ()
        want, found = free.block(job, 1), work.read_block(1)
        assert set(found.floats) == set(want.floats)
        for name, values in want.floats.items():
            np.testing.assert_array_equal(found.floats[name], values)
        assert set(found.quantized) == set(want.quantized)
        for name, tensor in want.quantized.items():
            have = found.quantized[name]
            assert have.grid == tensor.grid
            np.testing.assert_array_equal(have.codes, tensor.codes)
            assert list(have.params) == list(tensor.params)
            for key, values in tensor.params.items():
                assert have.params[key].dtype == values.dtype
                assert have.params[key].tobytes() == values.tobytes()
        assert work.record(1) == free.record(1)


def test_others_can_read_a_block(folder: Path, free: Any) -> None:
    from safetensors import safe_open

    with safe_open(folder / "blocks" / "00000.safetensors", "pt") as file:
        norm = file.get_tensor("model.layers.0.input_layernorm.weight|float")
        codes = file.get_tensor("model.layers.0.self_attn.q_proj.weight|Q4_0|codes")
        told = json.loads(file.metadata()["part"])
    assert str(norm.dtype) == "torch.bfloat16"  # nothing of it was changed
    assert (str(codes.dtype), tuple(codes.shape)) == ("torch.uint8", (256, 256))
    assert told["record"]["linears"][0]["steps"] == ["weighted", "gptq"]


def test_a_changed_float_is_kept_to_the_last_bit(free: Any, model: Path, tmp_path: Path) -> None:
    work, job = free.begin(model, tmp_path / "work")
    with work:
        stored = free.block(job, 0)
        name = "model.layers.0.input_layernorm.weight"
        changed = stored.floats[name] * np.float32(1.1)
        stored = Stored(stored.quantized, {**stored.floats, name: changed})
        work.write_block(0, stored, free.record(0))
        np.testing.assert_array_equal(work.read_block(0).floats[name], changed)


def test_what_the_plan_does_not_ask_for_is_not_written(
    free: Any, model: Path, tmp_path: Path
) -> None:
    work, job = free.begin(model, tmp_path / "work")
    with work:
        stored = free.block(job, 0)
        with pytest.raises(ValueError, match="block 1 is not as planned"):
            work.write_block(1, stored, free.record(1))
        with pytest.raises(ValueError, match="block 0 is not as planned"):
            work.write_block(0, Stored(stored.quantized, {}), free.record(0))
        with pytest.raises(ValueError, match="are not whole"), work.outer("before"):
            pass
        inexact = np.full(256, 1 / 3, np.float32)
        with (
            pytest.raises(
                ValueError, match=r"model\.norm\.weight: its values are not BF16 any more"
            ),
            work.outer("after", unchanged=True) as out,
        ):
            out.write("model.norm.weight", inexact)
        assert work.store.missing() == work.store.parts
        assert not [name for name in files(work.folder) if name.endswith("part")]


def test_changed_floats_around_the_blocks_are_kept_to_the_last_bit(
    free: Any, model: Path, tmp_path: Path
) -> None:
    work, _ = free.begin(model, tmp_path / "work", "BF16")
    rng = np.random.default_rng(0)
    norm, head = rng.random(256, np.float32), rng.random((512, 256), np.float32)
    with work:
        with work.outer("after") as out:
            out.write("lm_head.weight", head[:100])
            out.write("model.norm.weight", norm)
            out.write("lm_head.weight", head[100:])
        found = work.store.read("after")
        np.testing.assert_array_equal(found.floats("model.norm.weight"), norm)
        np.testing.assert_array_equal(found.floats("lm_head.weight"), head)
        np.testing.assert_array_equal(found.floats("lm_head.weight", 7, 9), head[7:9])


def test_the_size_told_is_the_size_taken(free: Any, model: Path, tmp_path: Path) -> None:
    work, job = free.begin(model, tmp_path / "work", "Q4_K_M")
    with work:
        free.fill(work, job)
        taken = sum(work.store.path(which).stat().st_size for which in work.store.parts)
    told = work_bytes(job.plan)
    headers = 4 * 8192
    assert told - 2 * 5 * 256 <= taken <= told + headers  # norms take half of what was told


def test_hidden_states_are_retired(free: Any, model: Path, tmp_path: Path) -> None:
    work, _ = free.begin(model, tmp_path / "work")
    with work:
        for index in (0, 1, 2):
            work.rows(index, "quant").write_bytes(b"x")
            work.rows(index, "float").write_bytes(b"x")
        work.retire_rows(2)
        assert files(work.folder / "rows") == {"00002.quant", "00002.float"}


def test_a_job_that_is_removed_leaves_nothing(free: Any, model: Path, folder: Path) -> None:
    work, _ = free.begin(model, folder)
    work.remove()
    assert not folder.exists()


# --- going on


def test_the_same_job_leaves_the_same_files(free: Any, model: Path, folder: Path) -> None:
    """Nothing of the clock, the process or the place is in what a resume compares."""
    told = {name: (folder / name).read_bytes() for name in ("job.json", "tokens.npy")}
    other = free.finished(model, folder.parent / "other" / "place", "Q4_0")
    assert {name: (other / name).read_bytes() for name in told} == told
    assert str(folder.parent).encode() not in told["job.json"]


def test_resume_needs_something_to_resume(free: Any, model: Path, tmp_path: Path) -> None:
    text = refused(free, model, tmp_path / "work", resume=True)
    assert "nothing to resume" in text
    assert not (tmp_path / "work").exists()
    work, _ = free.begin(model, tmp_path / "work")
    work.close()
    assert not work.resumed
    free.begin(model, tmp_path / "work", resume=True)[0].close()


def test_begin_again_forgets(free: Any, model: Path, folder: Path) -> None:
    work, job = free.begin(model, folder, "Q5_K_M", resume=False)
    with work:
        assert not work.resumed
        assert work.store.missing() == work.store.parts
        free.fill(work, job)
    assert convert(folder, out=folder.parent / "x.gguf").type == "Q5_K_M"


def test_every_field_that_differs_is_told(free: Any, model: Path, folder: Path) -> None:
    fields = {"recipe": {"rounds": ["gptq"], "damp": 0.5}, "seed": 7}
    text = refused(free, model, folder, "Q4_1", fields=fields)
    assert 'recipe.rounds: ["nearest"] then, ["gptq"] now' in text
    assert "recipe.damp: nothing then, 0.5 now" in text
    assert "seed: 0 then, 7 now" in text
    plan = 'plan.model.layers.*.mlp.up_proj.weight (2 of them): "Q4_0" then, "Q4_1" now'
    assert plan in text
    assert "--work" in text


def test_other_weights_are_noticed(free: Any, tiny_model: Tiny, model: Path, folder: Path) -> None:
    text = refused(free, tiny_model("llama", dtype="bfloat16", seed=1), folder)
    assert "1 field differs" in text
    assert "weights.sampled" in text


def test_other_tokens_are_noticed(
    free: Any, model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(free, "TOKENS", free.TOKENS + 1)
    assert "calibration.tokens" in refused(free, model, folder)


def test_the_files_a_model_is_cut_into_do_not_matter(
    free: Any, tiny_model: Tiny, folder: Path
) -> None:
    cut = tiny_model("llama", dtype="bfloat16", shard_size="300KB")
    with free.begin(cut, folder)[0] as work:
        assert work.store.missing() == ()


def test_another_layout_is_refused(free: Any, model: Path, folder: Path) -> None:
    told = json.loads((folder / "job.json").read_text())
    (folder / "job.json").write_text(json.dumps({**told, "layout": 99}))
    text = refused(free, model, folder)
    assert "version 99" in text
    assert "knows version 1" in text


def test_a_folder_of_something_else_is_left_alone(free: Any, model: Path, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.tex").write_text("precious")
    assert "thesis.tex" in refused(free, model, tmp_path / "work")


# --- damage


@pytest.mark.parametrize("where", [0, 9, 60, 700, -1, -20_000])
def test_a_flipped_bit_is_noticed_wherever_it_is(
    free: Any, model: Path, folder: Path, where: int
) -> None:
    path = folder / "blocks" / "00001.safetensors"
    flip(path, where)
    work, job = free.begin(model, folder)
    with work:
        assert work.done(1)
        assert not work.valid(1)
        with pytest.raises(Refused) as caught:
            work.read_block(1)
        assert str(path) in str(caught.value)
        assert "damaged" in str(caught.value)
        assert f"delete {path}" in str(caught.value)
        path.unlink()
        assert work.store.missing() == (1,)
        assert work.valid(0)
        free.fill(work, job)
        assert work.valid(1)


def test_a_file_that_was_read_is_checked_again_when_it_changes(
    free: Any, model: Path, folder: Path
) -> None:
    with free.begin(model, folder)[0] as work:
        assert work.valid(0)
        flip(work.store.path(0), -1)
        assert not work.valid(0)


@pytest.mark.parametrize("size", [0, 5, 2000, -1])
def test_a_truncated_file_is_noticed(free: Any, model: Path, folder: Path, size: int) -> None:
    path = folder / "outer" / "before.safetensors"
    raw = path.read_bytes()
    path.write_bytes(raw[:size])
    with free.begin(model, folder)[0] as work:
        assert not work.valid("before")
        assert work.valid("after")


def test_a_block_of_another_job_is_noticed(
    free: Any, model: Path, folder: Path, tmp_path: Path
) -> None:
    work, job = free.begin(model, tmp_path / "other", fields={"seed": 1})
    with work:
        free.fill(work, job)
    (tmp_path / "other/blocks/00000.safetensors").replace(folder / "blocks/00000.safetensors")
    with free.begin(model, folder)[0] as work, pytest.raises(Refused, match="is of another job"):
        work.read_block(0)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_job_file_can_be_deleted(
    free: Any, model: Path, folder: Path, damage: str
) -> None:
    path = folder / "job.json"
    raw = path.read_bytes()
    flipped = raw.replace(b'"seed": 0', b'"seed": 1')
    assert flipped != raw
    path.write_bytes({"flip": flipped, "cut": raw[:-9], "empty": b""}[damage])
    text = refused(free, model, folder)
    assert f"delete {path}" in text
    path.unlink()
    with free.begin(model, folder, resume=True)[0] as work:
        assert work.store.missing() == ()
    assert path.read_bytes() == raw


def test_without_a_job_file_the_blocks_tell_what_they_are_of(
    free: Any, model: Path, folder: Path
) -> None:
    (folder / "job.json").unlink()
    with pytest.raises(Refused, match="is of another job"):
        free.begin(model, folder, fields={"seed": 1})


def test_damaged_copies_and_tokens_are_made_again(free: Any, model: Path, folder: Path) -> None:
    (copy,) = folder.glob("source/*/tokenizer.json")
    for path in (copy, folder / "tokens.npy"):
        raw = path.read_bytes()
        path.write_bytes(raw[:-5])
        free.begin(model, folder)[0].close()
        assert path.read_bytes() == raw
    np.testing.assert_array_equal(np.load(folder / "tokens.npy"), free.TOKENS)


# --- processes


def test_one_process_at_a_time(free: Any, model: Path, child: Any, tmp_path: Path) -> None:
    process = child()
    with pytest.raises(Refused) as caught:
        free.begin(model, tmp_path / "work")
    assert f"process {process.pid} is at work in {tmp_path / 'work'}" in str(caught.value)
    process.kill()
    process.wait()
    free.begin(model, tmp_path / "work")[0].close()


def test_a_refusal_lets_go_of_the_lock(free: Any, model: Path, folder: Path) -> None:
    refused(free, model, folder, fields={"seed": 3})
    free.begin(model, folder)[0].close()


def test_a_killed_process_leaves_whole_blocks(
    free: Any, model: Path, child: Any, tmp_path: Path
) -> None:
    """Killed in the middle of writing, again and again: every block is whole, or not there."""
    rng = np.random.default_rng(0)
    interrupted = 0
    for _ in range(40):
        process = child()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=float(rng.uniform(0.0, 0.05)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        interrupted += any(name.endswith(".part") for name in files(tmp_path / "work"))
        work, job = free.begin(model, tmp_path / "work")
        with work:
            assert not [name for name in files(work.folder) if name.endswith(".part")]
            for index in range(work.journal.blocks):
                assert work.valid(index) == work.done(index)
        if interrupted == 3:
            break
    assert interrupted == 3  # else nothing was shown
    with free.begin(model, tmp_path / "work")[0] as work:
        free.fill(work, job)
    direct = convert(model, type="Q4_0", out=tmp_path / "direct.gguf", asked=Asked(method="rtn"))
    again = convert(tmp_path / "work", out=tmp_path / "again.gguf")
    assert again.files[0].read_bytes() == direct.files[0].read_bytes()


def test_a_full_disk_loses_nothing(free: Any, model: Path, child: Any, tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk."""
    work, job = free.begin(model, tmp_path / "work")
    with work:
        work.write_block(0, free.block(job, 0), free.record(0))
    before = {name: (work.folder / name).read_bytes() for name in files(work.folder)}
    limit = work.store.path(0).stat().st_size // 2
    process = child(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Refused: the disk is full" in errors
    assert "00000.safetensors could not be written" in errors
    assert "free some space" in errors
    after = {name: (work.folder / name).read_bytes() for name in files(work.folder)}
    assert {n: r for n, r in after.items() if n != "lock"} == {
        n: r for n, r in before.items() if n != "lock"
    }
    with free.begin(model, work.folder)[0] as work:
        free.fill(work, job)
        assert all(work.valid(which) for which in work.store.parts)


def test_an_unreadable_model_midway_loses_nothing(
    free: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, job = free.begin(model, tmp_path / "work")

    def fail(*_: object) -> None:
        raise Refused()

    with work, monkeypatch.context() as patch:
        work.write_block(0, free.block(job, 0), free.record(0))
        patch.setattr(Checkpoint, "rows", fail)
        with pytest.raises(Refused):
            free.write_outer(work, job, "before")
        assert work.store.missing() == ("before", 1, "after")
        assert not [name for name in files(work.folder) if name.endswith("part")]
    assert works.begun(work.folder)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(free: Any, model: Path, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(Refused, match="could not be written"):
        free.begin(model, tmp_path / "closed" / "work")
