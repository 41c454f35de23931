"""What a command costs: processor seconds, wall seconds and peak memory of its process."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    begin = time.perf_counter()
    output = log.with_suffix(".out")
    with output.open("wb") as out, log.open("wb") as errors:
        child = subprocess.Popen(
            command, stdout=out, stderr=errors, env={**os.environ, **environment}
        )
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - begin
    if child.returncode:
        tail = log.read_text("utf-8", "replace")[-2000:]
        raise RuntimeError(f"{command[0]} ended with {child.returncode}:\n{tail}")
    cpu = used.ru_utime + used.ru_stime
    return output.read_text("utf-8", "replace"), Cost(cpu, wall, used.ru_maxrss * 1024)
