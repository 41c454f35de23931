"""A calibrated conversion that is killed again and again, beside one that is not.

    python -P benchmarks/kill.py                          # a synthetic Llama of 12 blocks, 50 kills
    python -P benchmarks/kill.py models/smollm2-135m --kills 20 --method gptq --type Q4_K_M

Converts once unbroken; then starts the same conversion in a process of its own, ends it with
SIGKILL at a random time, and starts it again, until it has been killed often enough; a conversion
that is finished is begun anew. The times are drawn so that the kills spread over all of it: most
fall somewhere in the work on the next block or the one after it, some into starting up and into
writing the output. The number of threads is drawn for each process, too. Processes are forks of
this one, which has imported all and compiled the kernels: so they cost little, and times are
without that. Prints one JSON line for each kill and one at the end; exits with 1 when bytes differ,
or when more than one block of work was repeated for each kill.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # a fork has no threads but its own
sys.path.insert(0, str(Path(__file__).parent))  # left out under PYTHONSAFEPATH
from memory import write_checkpoint

from qconvert.asked import Asked
from qconvert.pipeline import convert

BEGUN = "begun"


@dataclass(frozen=True)
class Pace:
    """How long things took when nothing happened to them."""

    start_s: float  # from the first line to the first block
    block_s: float
    write_s: float  # from the last block to the end
    wall_s: float  # of all


@dataclass
class Run:
    """One process that converts."""

    folder: Path
    options: argparse.Namespace
    threads: int
    lines: list[str] = field(default_factory=list)  # of its log
    process: int | None = None
    code: int | None = None  # how it ended; negative: by a signal

    @property
    def out(self) -> Path:
        return self.folder / "out.gguf"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def blocks(self) -> list[int]:
        """Those that are finished."""
        return sorted(int(path.stem) for path in self.folder.glob("work/blocks/*.safetensors"))

    def convert(self) -> None:
        """In this process; the log tells of every stage."""
        file = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC)

        def tell(what: str, *_: Any) -> None:
            os.write(file, f"{time.perf_counter():.6f} {what}\n".encode())

        asked = Asked(
            method=self.options.method,
            calib=self.options.calib,
            calib_rows=self.options.calib_rows,
            calib_length=self.options.calib_length,
            work=self.folder / "work",
        )
        tell(BEGUN)
        convert(
            self.options.model, type=self.options.type, out=self.out, threads=self.threads,
            progress=lambda what, *_: tell(f"writing {what}"), blocks=tell, asked=asked,
        )  # fmt: skip
        tell("finished")
        os.close(file)

    def start(self) -> None:
        """In a process of its own."""
        self.log.unlink(missing_ok=True)
        self.begin = time.perf_counter()
        self.process = os.fork()
        if self.process == 0:
            try:
                self.convert()
            except BaseException:
                (self.folder / "errors.txt").write_text(traceback.format_exc(), "utf-8")
                os._exit(1)
            os._exit(0)

    def wait_for(self, what: str) -> bool:
        """Until the log has a line that begins with `what`; False when the process ended before."""
        while not any(line.startswith(what) for line in self.read()):
            if self.ended():
                return False
            time.sleep(0.002)
        return True

    def wait(self, seconds: float) -> bool:
        """True when the process has ended within that time."""
        until = time.perf_counter() + seconds
        while not self.ended() and time.perf_counter() < until:
            time.sleep(0.001)
        return self.ended()

    def ended(self) -> bool:
        if self.code is None and self.process is not None:
            found, status = os.waitpid(self.process, os.WNOHANG)
            if found:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def read(self) -> list[str]:
        """What the log says, without the times."""
        with contextlib.suppress(FileNotFoundError):
            told = self.log.read_text("utf-8").splitlines()
            self.lines = [line.partition(" ")[2] for line in told]
        return self.lines

    def end(self, *, kill: bool) -> bool:
        """Kill it, or let it finish; True when it was killed before it had finished."""
        if kill and not self.ended():
            assert self.process is not None
            os.kill(self.process, signal.SIGKILL)
        while not self.ended():
            time.sleep(0.005)
        self.wall_s = time.perf_counter() - self.begin
        self.read()
        assert self.code is not None
        if self.code > 0:
            raise RuntimeError((self.folder / "errors.txt").read_text("utf-8"))
        return self.code < 0

    def count(self, stage: str) -> int:
        return sum(line.startswith("block ") and line.endswith(stage) for line in self.lines)


def main() -> int:
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        if options.model is None:
            options.model = Path(scratch) / "model"
            write_checkpoint(options.model, options.blocks, options.hidden, options.ffn)
        folder = Path(scratch) / "unbroken"
        folder.mkdir()
        want, pace = unbroken(folder, options)
        found = killed(Path(scratch), options, want, pace)
    print(json.dumps(found), flush=True)
    return 0 if found["equal"] and found["repeated_blocks"] <= found["kills"] else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Bytes of a conversion that is killed often.")
    parser.add_argument("model", nargs="?", type=Path, help="a model folder; else one is made")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", default="best")
    parser.add_argument("--type", default="Q4_K_M")
    parser.add_argument("--calib", default="default")
    parser.add_argument("--calib-rows", type=int, default=16)
    parser.add_argument("--calib-length", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--ffn", type=int, default=1024)
    parser.add_argument("--scratch", type=Path)
    return parser.parse_args()


def unbroken(folder: Path, options: argparse.Namespace) -> tuple[str, Pace]:
    """The sha256 of the output, and how long its parts took. Once to compile, once to measure."""
    for name in ("first", "second"):
        run = Run(folder / name, options, 1)
        run.folder.mkdir()
        run.convert()
        run.read()
    told = [line.partition(" ") for line in run.log.read_text("utf-8").splitlines()]
    marks = [
        next(float(at) for at, _, what in told if what.startswith(mark))
        for mark in (BEGUN, "block 0", "writing", "finished")
    ]
    first, begun, written, end = marks
    blocks = run.count(": done")
    pace = Pace(begun - first, (written - begun) / blocks, end - written, end - first)
    facts = {name: round(value, 3) for name, value in vars(pace).items()}
    print(json.dumps({"unbroken": sha256(run.out), "blocks": blocks, **facts}), flush=True)
    options.blocks = blocks
    return sha256(run.out), pace


def killed(scratch: Path, options: argparse.Namespace, want: str, pace: Pace) -> dict[str, Any]:
    """Convert and kill until the kills are used up; what came of it."""
    chance = random.Random(options.seed)
    kills = conversions = computed = passed = 0
    wall, equal = 0.0, True
    folder = scratch / "killed"
    while kills < options.kills or folder.exists():
        folder.mkdir(exist_ok=True)
        run = Run(folder, options, chance.choice((1, 2)))
        left = options.blocks - len(run.blocks)
        run.start()
        hit = kills < options.kills and strike(run, chance, left, options.kills - kills, pace)
        hit = run.end(kill=hit) and hit
        computed, passed = computed + run.count(": calibrating"), passed + run.count(": passing on")
        wall += run.wall_s
        if hit:
            kills += 1
            last = run.lines[-1] if run.lines else "starting"
            told = {"kill": kills, "after_s": round(run.wall_s, 2), "at": last}
            parts = sorted(path.name for path in folder.rglob(".*.part"))
            told |= {"threads": run.threads, "finished": len(run.blocks), "half_written": parts}
            print(json.dumps(told), flush=True)
        if run.out.exists():
            conversions += 1
            equal &= sha256(run.out) == want
            shutil.rmtree(folder)
        elif not hit:
            raise RuntimeError("a conversion ended without an output")
    own = conversions * options.blocks
    return {
        "kills": kills,
        "conversions": conversions,
        "equal": equal,
        "sha256": want,
        "model_blocks": options.blocks,
        "computed_blocks": computed,
        "repeated_blocks": computed - own,
        "repeated_blocks_per_kill": round((computed - own) / max(kills, 1), 3),
        "blocks_passed_on_again": passed - conversions * (options.blocks - 1),
        "lost_s_per_kill": round((wall - conversions * pace.wall_s) / max(kills, 1), 2),
        "block_s": round(pace.block_s, 2),
    }


def strike(run: Run, chance: random.Random, left: int, kills: int, pace: Pace) -> bool:
    """Wait for a random while; False when the process ended before that. So many are let finish a
    block first that the kills will just do for the blocks that are left."""
    if chance.random() < 0.15:
        return run.wait_for(BEGUN) and not run.wait(chance.uniform(0, pace.start_s))
    if left == 0:
        most = 1.5 * (pace.start_s + pace.write_s)
        return run.wait_for(BEGUN) and not run.wait(chance.uniform(0, most))
    delay, further = chance.uniform(0, pace.block_s), chance.random() < left / (0.85 * kills)
    if not run.wait_for("block "):
        return False
    while further and run.count(": done") == 0:
        if run.ended():
            return False
        time.sleep(0.002)
        run.read()
    return not run.wait(delay)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
