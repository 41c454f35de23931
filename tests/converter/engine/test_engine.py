"""Whatever happens to a calibrated conversion, the same bytes come out in the end."""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qconvert.asked import Asked
from qconvert.formats.refusal import Refused
from qconvert.pipeline import Conversion, convert

Tiny = Callable[..., Path]
BLOCKS = 4
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": BLOCKS}
STAGES = ("reading", "calibrating", "optimising", "passing on", "done")
PLACES = [(block, stage) for block in range(BLOCKS) for stage in STAGES]


class Case:
    """One conversion, `best` to Q4_0, that may be given again and again."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model, self.folder = model, folder
        self.work, self.out = folder / "work", folder / "out.gguf"
        self.text = folder / "text.txt"
        self.text.write_text(Path(argparse.__file__).read_text("utf-8")[:20_000], "utf-8")
        self.computed: list[int] = []  # blocks, in the order in which they were begun

    def asked(self, **changed: Any) -> Asked:
        usual = {
            "method": "best", "calib": str(self.text), "calib_rows": 6, "calib_length": 24,
            "work": self.work, "keep_work": True,
        }  # fmt: skip
        return Asked(**{**usual, **changed})

    def run(
        self,
        told: Callable[[str], None] = lambda what: None,
        *,
        threads: int = 1,
        kind: str = "Q4_0",
        **changed: Any,
    ) -> Conversion:
        """Convert; `told` hears of every stage of every block."""

        def blocks(what: str, *_: Any) -> None:
            if what.endswith("calibrating"):
                self.computed.append(number(what))
            told(what)

        asked = self.asked(**changed)
        return convert(
            self.model, type=kind, out=self.out, threads=threads, force=True, asked=asked,
            blocks=blocks,
        )  # fmt: skip

    def begin_again(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        self.out.unlink(missing_ok=True)
        self.computed.clear()

    def sha256(self) -> str:
        return hashlib.sha256(self.out.read_bytes()).hexdigest()

    def block(self, index: int) -> Path:
        return self.work / "blocks" / f"{index:05d}.safetensors"

    def finished(self) -> list[int]:
        return [index for index in range(BLOCKS) if self.block(index).is_file()]


def number(what: str) -> int:
    return int(what.split(":")[0].removeprefix("block "))


@pytest.fixture
def case(tiny_model: Tiny, tmp_path: Path) -> Case:
    return Case(tiny_model("llama", dtype="bfloat16", **SMALL), tmp_path)


@pytest.fixture(scope="module")
def unbroken(tiny_model: Tiny, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The sha256 of a conversion that nothing happened to."""
    folder = tmp_path_factory.mktemp("unbroken")
    case = Case(tiny_model("llama", dtype="bfloat16", **SMALL), folder)
    case.run()
    assert case.computed == [*range(BLOCKS)]
    return case.sha256()


class Stop(Exception):
    pass


def stop_at(what: str, fault: BaseException | None = None) -> Callable[[str], None]:
    def told(now: str) -> None:
        if now == what:
            raise Stop() if fault is None else fault

    return told


# --- the same bytes


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_run_again_with_any_number_of_threads(case: Case, unbroken: str, threads: int) -> None:
    case.run(threads=threads)
    assert case.sha256() == unbroken


@pytest.mark.parametrize("method", ["awq+gptq", "smoothquant+best", "quarot+best", "gptq+hqq"])
def test_bytes_of_other_methods_do_not_depend_on_threads(case: Case, method: str) -> None:
    found = set()
    for threads in (1, 2):
        case.begin_again()
        with pytest.raises(Stop):
            case.run(stop_at("block 2: calibrating"), threads=threads, method=method)
        case.run(threads=3 - threads, method=method)
        found.add(case.sha256())
    assert len(found) == 1


@pytest.mark.parametrize(("block", "stage"), PLACES)
def test_stopped_anywhere_and_resumed(case: Case, unbroken: str, block: int, stage: str) -> None:
    begun = 0 if stage == "reading" else 1
    done = 1 if stage == "done" else 0
    with pytest.raises(Stop):
        case.run(stop_at(f"block {block}: {stage}"))
    assert case.finished() == [*range(block + done)]
    assert not case.out.exists()
    end = case.run(threads=2, resume=True)
    assert case.sha256() == unbroken
    assert end.calibrated is not None
    assert end.calibrated.resumed == block + done
    assert [one.index for one in end.calibrated.blocks] == [*range(BLOCKS)]
    assert case.computed == [*range(block + begun), *range(block + done, BLOCKS)]


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), SystemExit(143)], ids=repr)
def test_an_interrupt_leaves_what_is_finished(
    case: Case, unbroken: str, fault: BaseException
) -> None:
    with pytest.raises(type(fault)):
        case.run(stop_at("block 2: optimising", fault))
    assert case.finished() == [0, 1]
    case.run()
    assert case.sha256() == unbroken
    assert case.computed == [0, 1, 2, 2, 3]


CHILD = """
import sys
from contextlib import contextmanager
from qconvert import cli
@contextmanager
def bars():
    yield lambda *_: None, lambda what, *_: print(what, flush=True)
cli.bars = bars
cli.main()
"""


def test_sigterm_leaves_a_folder_that_can_be_resumed(case: Case, unbroken: str) -> None:
    arguments = [
        case.model, "--to", "gguf", "--type", "Q4_0", "--method", "best", "--calib", case.text,
        "--calib-rows", 6, "--calib-length", 24, "--work", case.work, "--out", case.out,
        "--threads", 1,
    ]  # fmt: skip
    command = [sys.executable, "-P", "-c", CHILD, *map(str, arguments)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for line in child.stdout:
        if line.strip() == "block 1: calibrating":
            child.send_signal(signal.SIGTERM)
            break
    child.communicate(timeout=60)
    assert child.returncode == 143
    assert 0 in case.finished()
    assert not case.out.exists()
    assert not [*case.folder.glob(".*")]
    case.run(resume=True)
    assert case.sha256() == unbroken
    assert 0 not in case.computed


# --- parts deleted or damaged


@pytest.mark.parametrize("block", range(BLOCKS))
def test_a_block_that_was_deleted_is_made_again(case: Case, unbroken: str, block: int) -> None:
    case.run()
    case.computed.clear()
    case.block(block).unlink()
    case.run()
    assert case.computed == [block]
    assert case.sha256() == unbroken


def test_blocks_deleted_here_and_there_are_made_again(case: Case, unbroken: str) -> None:
    case.run()
    case.computed.clear()
    for index in (0, 2):
        case.block(index).unlink()
    (case.work / "outer" / "before.safetensors").unlink()
    (case.work / "tokens.npy").unlink()
    case.run(threads=2)
    assert case.computed == [0, 2]
    assert case.sha256() == unbroken


def test_a_damaged_block_is_refused_by_name(case: Case, unbroken: str) -> None:
    case.run()
    damaged = [case.block(1), case.block(2), case.work / "outer" / "after.safetensors"]
    for path in damaged:
        flip(path, -9)
    case.computed.clear()
    with pytest.raises(Refused) as caught:
        case.run()
    assert len(caught.value.reasons) == 3
    for path in damaged:
        assert f"{path} is damaged" in str(caught.value)
        assert f"delete {path}" in str(caught.value)
    assert case.finished() == [0, 1, 2, 3]
    assert case.computed == []
    for path in damaged:
        path.unlink()
    case.run()
    assert case.computed == [1, 2]
    assert case.sha256() == unbroken


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 0x10
    path.write_bytes(raw)


@pytest.mark.parametrize("harm", ["delete", "flip", "cut", "other"])
def test_rows_that_were_harmed_are_made_again(case: Case, unbroken: str, harm: str) -> None:
    with pytest.raises(Stop):
        case.run(stop_at("block 2: calibrating"))
    (rows,) = (case.work / "rows").iterdir()
    if harm == "delete":
        rows.unlink()
    elif harm == "flip":
        flip(rows, 1000)
    elif harm == "cut":
        rows.write_bytes(rows.read_bytes()[:-200])
    else:  # of another job, whole in itself
        (case.folder / "other").mkdir()
        other = Case(case.model, case.folder / "other")
        with pytest.raises(Stop):
            other.run(stop_at("block 2: calibrating"), seed=5)
        (other.work / "rows" / rows.name).replace(rows)
    case.run()
    assert case.computed == [0, 1, 2, 2, 3]
    assert case.sha256() == unbroken


# --- what does not fit is refused


@pytest.mark.parametrize(
    ("changed", "fields"),
    [
        ({"seed": 1}, ["seed: 0 then, 1 now"]),
        ({"calib_length": 20}, ["calibration.rows: [6, 24] then, [6, 20] now"]),
        ({"calib_rows": 5}, ["calibration.rows: [6, 24] then, [5, 24] now", "calibration.tokens"]),
        ({"calib": "other"}, ["calibration.tokens"]),
        ({"method": "gptq"}, ["recipe.steps", "recipe.guarded: true then, false now"]),
        ({"effort": 0}, ["recipe.effort: 1 then, 0 now"]),
        ({"kind": "Q5_0"}, ['plan.model.layers.*.mlp.up_proj.weight (4 of them): "Q4_0" then']),
        ({"compute": "bfloat16"}, ['compute: "float32" then, "bfloat16" now']),
    ],
    ids=str,
)
def test_another_job_is_refused_with_what_differs(
    case: Case, changed: dict[str, Any], fields: list[str]
) -> None:
    with pytest.raises(Stop):
        case.run(stop_at("block 1: reading"), compute="float32")
    if changed.get("calib") == "other":
        text = case.folder / "other.txt"
        text.write_text(case.text.read_text("utf-8")[:9000].upper(), "utf-8")
        changed = {"calib": str(text)}
    before = case.block(0).read_bytes()
    with pytest.raises(Refused) as caught:
        case.run(**{"compute": "float32", **changed})
    for field in fields:
        assert field in str(caught.value)
    assert "--work" in str(caught.value)
    assert case.block(0).read_bytes() == before
    case.run(**{"compute": "float32", **changed}, resume=False)  # begin again
    assert case.finished() == [*range(BLOCKS)]


def test_resume_with_nothing_there_is_refused(case: Case) -> None:
    with pytest.raises(Refused, match="there is nothing to resume"):
        case.run(resume=True)
    assert not case.work.exists()


# --- the source and the disk fail midway


@pytest.mark.parametrize("harm", ["cut", "gone", "raise"])
def test_an_unreadable_shard_midway(
    tiny_copy: Tiny, tmp_path: Path, unbroken: str, harm: str
) -> None:
    model = tiny_copy("llama", dtype="bfloat16", shard_size="100KB", **SMALL)
    index = json.loads((model / "model.safetensors.index.json").read_text())["weight_map"]
    name = "model.layers.2.mlp.down_proj.weight"
    shard = model / index[name]
    assert shard.name != index["model.layers.0.mlp.down_proj.weight"]
    case, raw = Case(model, tmp_path), shard.read_bytes()

    def told(what: str) -> None:
        if what == "block 1: done":
            if harm == "cut":
                shard.write_bytes(raw[:5000])
            else:
                shard.unlink()
            if harm == "raise":
                shard.mkdir()

    with pytest.raises(Refused) as caught:
        case.run(told)
    assert shard.name in str(caught.value)
    assert case.finished() == [0, 1]
    with pytest.raises(Refused):  # still away: refused before anything is done
        case.run()
    if harm == "raise":
        shard.rmdir()
    shard.write_bytes(raw)
    case.run(resume=True)
    assert case.computed == [0, 1, 2, 3]
    assert case.sha256() == unbroken


@contextmanager
def no_larger_than(nbytes: int) -> Iterator[None]:
    """A limit on the size of files stands in for a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("stage", "part", "kept"),
    [
        ("starting", "before.safetensors", []),
        ("block 0: optimising", "00001.quant", []),
        ("block 1: passing on", "00002.quant", [0]),
        ("block 3: passing on", "00004.quant", [0, 1, 2]),
        ("head: optimising", "after.safetensors", [0, 1, 2, 3]),
    ],
)
def test_a_full_disk_midway(
    case: Case, unbroken: str, stage: str, part: str, kept: list[int]
) -> None:
    with pytest.raises(Refused) as caught:
        fill_disk_at(case, stage)
    assert "the disk is full" in str(caught.value)
    assert f"{part} could not be written" in str(caught.value)
    assert "goes on from there" in str(caught.value)
    assert case.finished() == kept
    assert not [path for path in case.work.rglob("*") if path.name.endswith(".part")]
    case.computed.clear()
    case.run(resume=True)
    assert case.computed == [*range(len(kept), BLOCKS)]
    assert case.sha256() == unbroken


def fill_disk_at(case: Case, stage: str) -> None:
    with no_larger_than(resource.RLIM_INFINITY):

        def told(what: str) -> None:
            if what == stage:
                _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
                resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))

        case.run(told)


def test_a_disk_that_is_full_when_the_output_is_written(case: Case, unbroken: str) -> None:
    case.run()
    case.out.unlink()
    case.computed.clear()
    with no_larger_than(20_000), pytest.raises(Refused) as caught:
        case.run()
    assert "the disk is full" in str(caught.value)
    assert str(case.work) in str(caught.value)
    assert not case.out.exists()
    case.run()
    assert case.computed == []
    assert case.sha256() == unbroken
