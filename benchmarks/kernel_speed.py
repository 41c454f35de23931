"""How fast every operation of `kernels/` is on a GPU, beside what that GPU can do in the same run.

    python -P benchmarks/kernel_speed.py [--only packing] [--repeat 20] [--jobs 8]
    python -P benchmarks/kernel_speed.py --device cpu --tiny     # the same code, interpreted

One JSON line for each operation and shape: median milliseconds by the GPU's own events, read from
memory and not from the cache, without what the processor takes to launch it (`launch_ms`); bytes or
operations a second and their share of what torch's copy (`copy`) or its bfloat16 product (`matmul`)
reaches here, or how many times as fast it is as the baseline (`baseline`: the same in plain torch,
torch's float16 product for w4a16 and w8a8); what was wanted, and whether it was reached; how far
the result is from the truth. Where bodies must agree, `deviation` is the share of bytes that differ
from what a processor computes. What fails has a line with `error`, and the rest still runs; after
an error that CUDA does not recover from, in a process of its own. The last line sums up. Exits with
1 when something failed, is slower than wanted or further off than its bound.

On a GPU, `--jobs` processes first run everything once, so that the kernels, of which each takes a
second or twenty, are compiled beside each other and kept (TRITON_CACHE_DIR).

Without a GPU the kernels run under Triton's interpreter: results are checked, nothing is judged by
its time.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # left out under PYTHONSAFEPATH

Line = dict[str, Any]
FAMILIES = "kernel_cases"
NO_FAMILY = ("case", "clock")


def main() -> int:
    options = _options()
    if options.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined
    import torch
    from kernel_cases.clock import Clock

    clock = Clock(torch.device(options.device), options.repeat, not options.tiny)
    if options.part:
        return _compiled(options, clock)
    if clock.judges and options.jobs and not options.skip:
        _compile_ahead(options)
    failed = list(options.failed)
    for number, name, group in numbered(options, clock):
        if number < options.skip:
            continue
        for line in lines(name, group, clock):
            print(json.dumps(line), flush=True)
            if not (line["as_wanted"] and line["correct"]):
                failed.append(f"{line['operation']}: {line['of']}")
        _go_on(clock, number + 1, failed)
    print(json.dumps({"benchmark": "kernel_speed", "failed": failed, **_about(clock)}))
    return 1 if failed else 0


def numbered(options: argparse.Namespace, clock: Any) -> Iterator[tuple[int, str, Any]]:
    """Groups of cases that are asked for, and their names."""
    from kernel_cases.case import Setting

    setting, number = Setting(clock.device, options.tiny), 0
    for family in families():
        if re.search(options.only, family):
            for group in importlib.import_module(f"{FAMILIES}.{family}").groups(setting, clock):
                about = [str(one) for one in group.args if isinstance(one, int | str)]
                yield number, " ".join([family, *about]), group
                number += 1


def lines(name: str, group: Any, clock: Any) -> Iterator[Line]:
    """A line of each case, or of what went wrong in its place."""
    try:
        cases = group()
        for case in cases:
            try:
                line = measured(case, clock)
            except Exception as error:  # of many kinds: the others are to run
                line = _failure(case.operation, case.of, error)
            yield line
    except Exception as error:
        yield _failure(name, "its data could not be made", error)


def _failure(operation: str, of: str, error: Exception) -> Line:
    told = f"{type(error).__name__}: {error}"[:2000]
    return {"operation": operation, "of": of, "error": told, "correct": False, "as_wanted": False,
            "judged": False}  # fmt: skip


def _go_on(clock: Any, after: int, failed: list[str]) -> None:
    """Begin again in a new process after an error that spoils this one."""
    if not clock.judges:
        return
    import torch

    try:
        torch.cuda.synchronize(clock.device)
        torch.cuda.empty_cache()
    except RuntimeError:
        sys.stdout.flush()
        given = [*sys.argv[1:], "--skip", str(after), "--failed", *failed]
        os.execv(sys.executable, [sys.executable, "-P", __file__, *given])


def _compile_ahead(options: argparse.Namespace) -> None:
    """All kernels, by processes that share the groups; what fails there fails here again."""
    start, count = time.perf_counter(), options.jobs
    given = [sys.executable, "-P", __file__, *sys.argv[1:], "--part"]
    few = {**os.environ, "OMP_NUM_THREADS": "2"}  # threads for each
    parts = [
        subprocess.Popen([*given, str(part), str(count)], stdout=subprocess.DEVNULL, env=few)
        for part in range(count)
    ]
    codes = [part.wait() for part in parts]
    print(json.dumps({"benchmark": "kernel_speed", "compiled_by": count, "exits": codes,
                      "seconds": round(time.perf_counter() - start, 1)}), flush=True)  # fmt: skip


def _compiled(options: argparse.Namespace, clock: Any) -> int:
    import torch

    part, count = options.part
    failed = 0
    for number, _, group in numbered(options, clock):
        if number % count == part:
            try:
                for case in group():
                    case.run()
            except Exception:  # told when it is measured
                failed = 1
            torch.cuda.empty_cache()  # memory is for all
    return failed


def families() -> list[str]:
    found = pkgutil.iter_modules([str(Path(__file__).parent / FAMILIES)])
    return sorted(one.name for one in found if one.name not in NO_FAMILY)


def measured(case: Any, clock: Any) -> Line:
    """A case run, timed and judged."""
    found, seconds = clock.once(case.run)
    deviation = case.deviation(found)
    del found
    if clock.judges:
        seconds = clock(case.run, *case.more)
    line = {
        "operation": case.operation, "of": case.of, "ms": round(seconds * 1e3, 4),
        "deviation": deviation, "bound": case.bound, "correct": deviation <= case.bound,
    }  # fmt: skip
    if clock.judges:
        line["launch_ms"] = round(clock.launching(case.run) * 1e3, 4)
    if case.moved:
        line["GB_s"] = round(case.moved / seconds / 1e9, 1)
    if case.flops:
        line["TFLOP_s"] = round(case.flops / seconds / 1e12, 2)
    if case.baseline is not None:
        other = clock(case.baseline, *case.more_baseline)
        line |= {"baseline_ms": round(other * 1e3, 4), "faster": round(other / seconds, 2)}
    reached = {
        "copy": lambda: case.moved / seconds / clock.copy,
        "matmul": lambda: case.flops / seconds / clock.matmul,
        "baseline": lambda: line["faster"],
    }[case.limit]()
    judged = clock.judges and case.wanted is not None
    return {**line, "limit": case.limit, "reached": round(reached, 3), "wanted": case.wanted,
            "as_wanted": not judged or reached >= case.wanted, "judged": judged}  # fmt: skip


def _about(clock: Any) -> Line:
    import torch
    import triton

    name = torch.cuda.get_device_name(clock.device) if clock.judges else platform.machine()
    return {
        "device": name, "torch": torch.__version__, "triton": triton.__version__,
        "copy_GB_s": round(clock.copy / 1e9, 1), "matmul_TFLOP_s": round(clock.matmul / 1e12, 2),
    }  # fmt: skip


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="shapes that the interpreter can run")
    parser.add_argument("--only", default="", help="a pattern of families: packing, products ...")
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=min(8, os.cpu_count() or 1),
                        help="processes that compile beforehand on a GPU; 0: none")  # fmt: skip
    parser.add_argument("--part", type=int, nargs=2, default=(), help=argparse.SUPPRESS)
    parser.add_argument("--skip", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--failed", nargs="*", default=[], help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
