"""Whole conversions on an emulated device, each beside the same one on the processor.

    python -P far_conversions.py FLAT DEEP TEXT FOLDER

Run by `test_device.py`, in a process of its own: the emulator changes torch. FLAT is a model of one
block, DEEP one of four. One JSON line a case: how many codes there are; how many differ between the
device and the processor as it is (`processor`), and as it is with the bodies, and the attention,
that the device has (`alike`). Of one case also digests of the output of the same job done on the
device otherwise: what is not at work waits on the processor (`waiting`), or stopped in the middle
and resumed (`resumed`, with the stages that the second run told of).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # left out under PYTHONSAFEPATH

import far_device

from qconvert.algorithms import panels
from qconvert.asked import Asked
from qconvert.calibrate import calibrate
from qconvert.engine import passing
from qconvert.engine.bundle import Bundle, open_bundle
from qconvert.job import prepare
from qconvert.kernels import bodies
from qconvert.pipeline import convert

ROWS, LENGTH = 4, 24
PANEL = 32  # columns: so that there are several
EVERY = 2  # blocks between two writings of the states, where a run is stopped
STOP = "block 3: calibrating"


@dataclass(frozen=True, slots=True)
class Case:
    to: str
    type: str
    method: str
    effort: int = 1
    deep: bool = False  # and done otherwise as well


CASES = {
    "gptq": Case("gguf", "Q4_0", "gptq", deep=True),
    "learned": Case("onnx", "int4-g32", "best", 2),
    "awq": Case("vllm", "w4a16-g32-asym", "awq"),
    "w8a8": Case("vllm", "w8a8", "smoothquant+best"),
    "rotated": Case("gguf", "Q4_0", "quarot+gptq"),
    "nvfp4": Case("vllm", "nvfp4", "gptq"),
}


class Stop(Exception):
    pass


@dataclass(frozen=True, slots=True)
class Place:
    flat: Path
    deep: Path
    text: Path
    folder: Path

    def made(
        self,
        name: str,
        case: Case,
        device: str,
        told: Callable[[str], None] = lambda what: None,
        *,
        waits: bool = False,
    ) -> Bundle:
        """The finished work folder `name`."""
        folder = self.folder / name
        asked = Asked(
            method=case.method, effort=case.effort, device=device, calib=str(self.text),
            calib_rows=ROWS, calib_length=LENGTH, compute="float32", keep_work=True,
        )  # fmt: skip
        model = self.deep if case.deep else self.flat
        job = prepare(model, case.to, type=case.type, out=folder / "out", asked=asked)
        assert job.checkpoint is not None
        assert job.recipe is not None
        calibrate(
            job.checkpoint, job.source, job.plan, job.recipe, asked, folder / "work", 1,
            lambda what, *_: told(what), waits=waits,
        )  # fmt: skip
        return open_bundle(folder / "work")

    def digest(self, name: str, case: Case) -> str:
        """Of the output that the work folder `name` is written to."""
        work, out = self.folder / name / "work", self.folder / name / "written"
        done = convert(work, case.to, type=case.type, out=out, threads=1)
        whole = hashlib.sha256()
        for file in done.files:
            whole.update(file.read_bytes())
        return whole.hexdigest()


@contextmanager
def alike() -> Iterator[None]:
    """Within, the processor computes by the bodies that a device without Triton has, and attention
    in the steps that torch takes there. What is left are the arrays and the device of each."""
    usual = bodies.body_for
    users = [one for one in sys.modules.values() if getattr(one, "body_for", None) is usual]

    def plain(device: torch.device, asked: bodies.Body | None = None) -> bodies.Body:
        return asked or "plain"

    fused = torch.nn.attention.SDPBackend.MATH
    for one in users:
        vars(one)["body_for"] = plain
    try:
        with torch.nn.attention.sdpa_kernel(fused):
            yield
    finally:
        for one in [one for one in sys.modules.values() if getattr(one, "body_for", None) is plain]:
            vars(one)["body_for"] = usual


def differing(one: Bundle, other: Bundle) -> tuple[int, int]:
    """How many codes two work folders hold, and how many of them are not the same."""
    count = differ = 0
    for tensor in one.tensors:
        for grid in one.grids_of(tensor.name):
            rows = (tensor.name, 0, tensor.shape[0], grid)
            a, b = one.quantized(*rows), other.quantized(*rows)
            assert a is not None
            assert b is not None
            count += a.codes.size
            differ += int((a.codes != b.codes).sum())
    return count, differ


def otherwise(place: Place, case: Case) -> dict[str, Any]:
    """The same job while what is not at work waits, and stopped and resumed."""
    stages: list[str] = []
    place.made("waiting", case, far_device.NAME, waits=True)
    passing.EVERY = EVERY

    def stop(what: str) -> None:
        if what == STOP:
            raise Stop

    try:
        place.made("resumed", case, far_device.NAME, stop)
    except Stop:
        place.made("resumed", case, far_device.NAME, stages.append)
    return {
        "waiting": place.digest("waiting", case),
        "resumed": place.digest("resumed", case),
        "stages": stages,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("flat", "deep", "text", "folder"):
        parser.add_argument(name, type=Path)
    place = Place(**vars(parser.parse_args()))
    far_device.install()
    torch.set_num_threads(1)
    panels.PANEL = PANEL
    for name, case in CASES.items():
        far = place.made(f"{name}-far", case, far_device.NAME)
        codes, processor = differing(far, place.made(f"{name}-cpu", case, "cpu"))
        with alike():
            _, same = differing(far, place.made(f"{name}-alike", case, "cpu"))
        line = {"case": name, "codes": codes, "processor": processor, "alike": same}
        if case.deep:
            line |= {"digest": place.digest(f"{name}-far", case), **otherwise(place, case)}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
