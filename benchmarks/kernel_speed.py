"""How fast every operation of `kernels/` is on a GPU, beside what that GPU can do in the same run.

    python -P benchmarks/kernel_speed.py [--only packing] [--repeat 20]
    python -P benchmarks/kernel_speed.py --device cpu --tiny     # the same code, interpreted

One JSON line for each operation and shape: median milliseconds by the GPU's own events, with the
cache overwritten before each run; bytes or operations a second and their share of what torch's copy
(`copy`) or its bfloat16 product (`matmul`) reaches here, or how many times as fast it is as the
baseline (`baseline`: the same in plain torch, torch's float16 product for w4a16 and w8a8); what was
wanted, and whether it was reached; how far the result is from the truth. Where bodies must agree,
`deviation` is the share of bytes that differ from what a processor computes. The last line sums up.
Exits with 1 when something is slower than wanted or further off than its bound.

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
import sys
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

    device = torch.device(options.device)
    clock = Clock(device, options.repeat, not options.tiny)
    failed = []
    for line in lines(options, device, clock):
        print(json.dumps(line), flush=True)
        if not (line["as_wanted"] and line["correct"]):
            failed.append(f"{line['operation']}: {line['of']}")
    print(json.dumps({"benchmark": "kernel_speed", "failed": failed, **_about(clock)}))
    return 1 if failed else 0


def lines(options: argparse.Namespace, device: Any, clock: Any) -> Iterator[Line]:
    from kernel_cases.case import Setting

    setting = Setting(device, options.tiny)
    for family in families():
        if re.search(options.only, family):
            for case in importlib.import_module(f"{FAMILIES}.{family}").cases(setting):
                yield measured(case, clock)


def families() -> list[str]:
    found = pkgutil.iter_modules([str(Path(__file__).parent / FAMILIES)])
    return sorted(one.name for one in found if one.name not in NO_FAMILY)


def measured(case: Any, clock: Any) -> Line:
    """A case run, timed and judged."""
    found, seconds = clock.once(case.run)
    deviation = case.deviation(found)
    del found
    if clock.judges:
        seconds = clock(case.run)
    line = {
        "operation": case.operation, "of": case.of, "ms": round(seconds * 1e3, 4),
        "deviation": deviation, "bound": case.bound, "correct": deviation <= case.bound,
    }  # fmt: skip
    if case.moved:
        line["GB_s"] = round(case.moved / seconds / 1e9, 1)
    if case.flops:
        line["TFLOP_s"] = round(case.flops / seconds / 1e12, 2)
    if case.baseline is not None:
        other = clock(case.baseline)
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
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
