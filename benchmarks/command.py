"""qconvert as a user runs it: one command, its report read back."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Line = dict[str, Any]


def qconvert(*arguments: object, fails: bool = False) -> Line:
    """A command's report; `fails`: a check that fails is a finding, too."""
    command = [sys.executable, "-P", "-m", "qconvert", *map(str, arguments), "--json", "-"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode > int(fails):
        raise SystemExit(f"{' '.join(command)}: exit {done.returncode}")
    found: Line = json.loads(done.stdout)
    return found


def parser_of(doc: str | None, threads: int) -> argparse.ArgumentParser:
    """With what every benchmark is asked that converts forms and checks them in a runtime."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", default="default", help="as qconvert's --calib")
    parser.add_argument("--calib-rows", type=int, default=32)
    parser.add_argument("--calib-length", type=int, default=512)
    parser.add_argument("--text", type=Path, help="to judge on; default: that of qconvert check")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--method", help="default: that of qconvert for the type")
    parser.add_argument("--threads", type=int, default=threads)
    parser.add_argument("--keep", type=Path, help="a folder to leave everything in")
    return parser


def print_lines(
    options: argparse.Namespace,
    lines: Callable[[argparse.Namespace, Path], Iterator[Line]],
    brief: Callable[[Line], str],
) -> None:
    """Each line as JSON on standard output, in short on standard error."""
    with tempfile.TemporaryDirectory(prefix="qconvert-benchmark-") as scratch:
        folder = (options.keep or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for line in lines(options, folder):
            print(json.dumps(line), flush=True)
            print(brief(line), file=sys.stderr, flush=True)
