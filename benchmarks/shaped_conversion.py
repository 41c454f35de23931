"""A whole calibrated conversion of a checkpoint with the shapes of a real model, timed and weighed.

    python -P benchmarks/shaped_conversion.py 8B                # on a CUDA device; 40 GB of disk
    python -P benchmarks/shaped_conversion.py 70B --blocks 1    # its memory beside --plan's
    python -P benchmarks/shaped_conversion.py 405B --blocks 1
    python -P benchmarks/shaped_conversion.py 8B --scale tiny --rows 8 --length 64 --device cpu

Writes the checkpoint (random weights, benchmarks/shaped.py) and a text of random words,
calibrates, quantizes and packs it for vLLM (w4a16 with groups of 128), reads every code of every
linear back from the folder and holds it against the work folder. One JSON line for each block, and
one for all: seconds of each part, peaks of memory beside what was foretold, and `faults`: for 8B,
more than 180 seconds or 12 GB of the device; for any size, more of the device than foretold, and
codes that differ. Exits with 1 when there are faults.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import string
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))  # left out under PYTHONSAFEPATH
import shaped

from qconvert import cost, pipeline
from qconvert.asked import Asked, Calibrated
from qconvert.engine.bundle import Bundle, open_bundle
from qconvert.engine.record import BlockRecord
from qconvert.formats.serving.folder.reader import open_reader
from qconvert.job import Job, prepare
from qconvert.resources import peak_resident_bytes, usable_cores

MOST_SECONDS = {"8B": 180.0}
MOST_DEVICE_BYTES = {"8B": 12_000_000_000}
TARGET, BITS = "vllm", 4


def main() -> int:
    options = _options()
    scratch = Path(tempfile.mkdtemp(prefix="shaped-", dir=options.scratch))
    try:
        line = measured(options, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(json.dumps(line), flush=True)
    return int(bool(line["faults"]))


def measured(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    shape = shaped.shape_of(options.size, blocks=options.blocks, scale=options.scale)
    clock = Clock()
    model = shaped.write(scratch / "model", shape)
    text = _text(scratch / "text.txt", options.rows * options.length)
    clock.lap("writing the checkpoint")
    asked = Asked(
        method=options.method, calib=str(text), calib_rows=options.rows,
        calib_length=options.length, device=options.device, compute=options.compute,
        work=scratch / "work", keep_work=True,
    )  # fmt: skip
    job = prepare(model, TARGET, bits=BITS, out=scratch / "out", asked=asked)
    threads = options.threads or usable_cores()
    foretold = cost.placed(job, asked, threads)
    device = Device(options.device)
    clock.lap("planning")
    done = pipeline.run(job, threads=threads, asked=asked, blocks=_Blocks(device))
    clock.lap("calibrating and packing")
    differ, compared = differing(job, open_bundle(scratch / "work"))
    clock.lap("reading back")
    seconds = clock.laps["calibrating and packing"] + clock.laps["reading back"]
    line = {
        "size": options.size, "scale": options.scale, "blocks": shape.blocks,
        "method": options.method, "rows": options.rows, "length": options.length,
        "device": device.name, "torch": torch.__version__, "threads": threads,
        "seconds": round(seconds, 2), "parts": clock.laps,
        "source_bytes": shape.nbytes, "output_bytes": done.nbytes,
        "device_bytes": device.peak, "device_foretold": foretold.device, "waits": foretold.waits,
        "host_bytes": peak_resident_bytes(), "host_foretold": foretold.host,
        "codes": compared, "codes_that_differ": differ,
        "errors": _errors(done.calibrated),
    }  # fmt: skip
    return {**line, "faults": _faults(line, options)}


@dataclass(slots=True)
class Clock:
    """Seconds of one part after the other."""

    laps: dict[str, float] = field(default_factory=dict)
    _start: float = field(default_factory=time.perf_counter)

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._start = round(now - self._start, 2), now


class Device:
    """What is taken of a CUDA device: by torch at its peak, and by its context and libraries."""

    def __init__(self, kind: str) -> None:
        self._cuda = kind == "cuda"
        self.name = torch.cuda.get_device_name() if self._cuda else "cpu"
        self._outside = 0
        if self._cuda:
            torch.cuda.init()
            free, total = torch.cuda.mem_get_info()
            self._outside = total - free - torch.cuda.memory_reserved()
            torch.cuda.reset_peak_memory_stats()

    @property
    def peak(self) -> int:
        return self._outside + torch.cuda.max_memory_reserved() if self._cuda else 0

    @property
    def allocated(self) -> int:
        """Of tensors alone."""
        return torch.cuda.max_memory_allocated() if self._cuda else 0


class _Blocks:
    """Told of every block; prints a line when one is done."""

    def __init__(self, device: Device) -> None:
        self._device, self._since = device, time.perf_counter()
        self._parts: dict[str, float] = {}
        self._now = "starting"

    def __call__(self, what: str, done: int, total: int, record: BlockRecord | None) -> None:
        now = time.perf_counter()
        spent = self._parts.get(self._now, 0.0) + now - self._since
        self._parts[self._now], self._since = round(spent, 3), now
        self._now = what.rpartition(": ")[2]
        if record is not None:
            line = {
                "block": record.index, "seconds": self._parts,
                "device_allocated": self._device.allocated, "device_bytes": self._device.peak,
            }  # fmt: skip
            print(json.dumps(line), flush=True)
            self._parts = {}


def differing(job: Job, bundle: Bundle) -> tuple[int, int]:
    """Codes of the folder that are not those of the work folder, and codes compared."""
    reader = open_reader(job.path)
    differ = compared = 0
    for tensor in job.plan.tensors:
        if tensor.grid is None or tensor.source is None:
            continue
        name = tensor.source.name
        found = reader.codes(name)
        kept = bundle.quantized(name, 0, tensor.source.shape[0], tensor.grid.name)
        assert kept is not None
        differ += int((found.codes != kept.codes).sum())
        differ += sum(
            int((np.asarray(found.params[one], np.float32) != np.asarray(values, np.float32)).sum())
            for one, values in kept.params.items()
        )
        compared += kept.codes.size
    return differ, compared


def _errors(calibrated: Calibrated | None) -> float:
    """Mean over all linears of the output's error, relative."""
    assert calibrated is not None
    found = [linear.error for block in calibrated.blocks for linear in block.linears]
    return float(np.mean(found))


def _faults(line: dict[str, Any], options: argparse.Namespace) -> list[str]:
    faults = []
    if line["codes_that_differ"]:
        faults.append(f"{line['codes_that_differ']} codes are not those of the work folder")
    if line["device_bytes"] > line["device_foretold"]:
        faults.append("more of the device was taken than foretold")
    if options.scale != "full" or options.device == "cpu" or options.blocks is not None:
        return faults
    limits: list[tuple[str, dict[str, Any]]] = [
        ("seconds", MOST_SECONDS), ("device_bytes", MOST_DEVICE_BYTES),
    ]  # fmt: skip
    return faults + [
        f"{key} {line[key]} is more than {most[options.size]}"
        for key, most in limits
        if line[key] > most.get(options.size, float("inf"))
    ]


def _text(path: Path, tokens: int) -> Path:
    """Words of random letters: the tokenizer of a shaped model knows no others."""
    chance = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(max(1, tokens // 512)):
            words = (
                "".join(chance.choices(string.ascii_lowercase, k=chance.randint(2, 9)))
                for _ in range(800)
            )
            file.write(" ".join(words) + "\n\n")
    return path


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("size", choices=list(shaped.SHAPES))
    parser.add_argument("--blocks", type=int, help="so many; default: all of them")
    parser.add_argument("--scale", choices=shaped.SCALES, default="full")
    parser.add_argument("--method", default="gptq")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--compute", choices=("auto", "bfloat16", "float32"), default="auto")
    parser.add_argument("--threads", type=int, help="default: all cores")
    parser.add_argument("--scratch", type=Path, help="folder for what is written meanwhile")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
