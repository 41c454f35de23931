"""What a command costs: processor seconds, wall seconds and peak memory of its process.

Linux counts the memory of the process that starts a program to the program's own peak, so commands
are started by a small process of their own: this module, run as a script.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    cpu_s: float  # user and system, all threads, and what it waited for
    wall_s: float
    peak_bytes: int  # largest resident set of the process


def measured(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> tuple[str, Cost]:
    """Run `command`; its standard output, and what it took. Standard error goes to `log`.

    `RuntimeError` with the end of the log when it fails.
    """
    output = log.with_suffix(".out")
    starter = [sys.executable, "-I", "-S", __file__, str(output), str(log), *command]
    told = subprocess.run(
        starter, env={**os.environ, **environment}, check=True, capture_output=True, text=True
    )
    found = json.loads(told.stdout)
    if found.pop("status"):
        tail = log.read_text("utf-8", "replace")[-2000:]
        raise RuntimeError(f"{command[0]} failed:\n{tail}")
    return output.read_text("utf-8", "replace"), Cost(**found)


def _start(output: Path, log: Path, command: Sequence[str]) -> dict[str, float]:
    begin = time.perf_counter()
    with output.open("wb") as out, log.open("wb") as errors:
        child = subprocess.Popen(command, stdout=out, stderr=errors)
        _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - begin
    unit = 1 if sys.platform == "darwin" else 1024
    cost = Cost(used.ru_utime + used.ru_stime, wall, used.ru_maxrss * unit)
    return {"status": child.returncode, **asdict(cost)}


if __name__ == "__main__":
    print(json.dumps(_start(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])))
