"""What every Triton kernel takes when it is compiled for sm_80 and sm_90. Needs no GPU.

    python -P benchmarks/compiled.py [--only packing] [--arch 90] [--jobs 2]

Looks through `qconvert.kernels.gpu` for modules with `VARIANTS`, compiles each variant once for
each architecture and prints one JSON line: registers of a thread, shared bytes of a program, bytes
of a thread that leave its registers (spills, from what ptxas says), warps that a multiprocessor
holds at once, bytes of the widest load and store, the matrix instruction, what rounds otherwise
than each operation to nearest, seconds, and `faults`: every limit of the variant's `Launch` that it
breaks. The last line sums up, with the kernels that no variant compiles. Exits with 1 when there
are faults.

Pointers and whole numbers are taken as multiples of 16, as they are for the shapes of real models;
`--unaligned` takes nothing for granted. `--arch 86 89 120` is for GPUs of desktops, whose programs
have 99 KiB of shared memory.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import multiprocessing
import os
import pkgutil
import re
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

# Read when a kernel is defined: one that is defined for the interpreter cannot be compiled.
os.environ.pop("TRITON_INTERPRET", None)

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

sys.path.insert(0, str(Path(__file__).parent))  # left out under PYTHONSAFEPATH
from launched import name_of, uncovered

from qconvert.kernels.gpu.launch import Launch

Line = dict[str, Any]

PACKAGE = "qconvert.kernels.gpu"
ARCHITECTURES = (80, 90)
WARP = 32
REGISTERS = 65536  # of a multiprocessor, both architectures
WARPS = {80: 64, 86: 48, 89: 48, 90: 64, 120: 48}
SHARED = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 120: 99 * 1024}
"""Bytes that programs of a multiprocessor share, and that one of them may have: CUDA gives 48 KiB
unless it is asked, as Triton does."""

MATRIX = {
    "mma.sync": {90: ("mma.sync", "wgmma")},
    "wgmma": {90: ("wgmma",)},
}
"""The instruction that a launch asks for -> what will do, by architecture; elsewhere mma.sync."""

INEXACT = re.compile(r"^(?:fma|mad)\.(?:\w+\.)*f(?:32|64)|^div\.full|\.approx|\.ftz")
"""Rounds less often than once an operation, or not to nearest, or takes small numbers for zero."""


@dataclass(frozen=True)
class Task:
    module: str
    variant: str
    arch: int
    aligned: bool


def main() -> int:
    options = _options()
    start = time.perf_counter()
    found = list(modules(options.package))
    tasks = [
        Task(module.__name__, variant, arch, not options.unaligned)
        for module in found
        for variant in getattr(module, "VARIANTS", {})
        for arch in options.arch
        if re.search(options.only, f"{module.__name__}:{variant}")
    ]
    lines = []
    for line in compiled(tasks, options.jobs):
        lines.append(line)
        print(json.dumps(line), flush=True)
    bare = [] if options.only else uncovered(found)
    faults = sum(len(line["faults"]) for line in lines)
    about = {
        "benchmark": "compiled", "triton": triton.__version__, "variants": len(lines),
        "kernels": len({line["kernel"] for line in lines}), "faults": faults,
        "not_compiled": bare, "seconds": round(time.perf_counter() - start, 1),
    }  # fmt: skip
    print(json.dumps(about))
    return 1 if faults or bare else 0


def modules(package: str = PACKAGE) -> Iterator[ModuleType]:
    """Every module of `package`, by name."""
    top = importlib.import_module(package)
    for one in sorted(pkgutil.walk_packages(top.__path__, f"{package}."), key=lambda m: m.name):
        yield importlib.import_module(one.name)


def compiled(tasks: list[Task], jobs: int) -> Iterator[Line]:
    """A line of each task, in their order, made by `jobs` processes."""
    if jobs == 1 or len(tasks) == 1:
        yield from map(compile_one, tasks)
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(compile_one, tasks)


def compile_one(task: Task) -> Line:
    launch = importlib.import_module(task.module).VARIANTS[task.variant]()
    line: Line = {
        "variant": f"{task.module.rpartition('.')[2]}:{task.variant}", "arch": task.arch,
        "kernel": name_of(launch.kernel), "warps": launch.warps, "stages": launch.stages,
    }  # fmt: skip
    start = time.perf_counter()
    try:
        built, log = _build(launch, task.arch, task.aligned)
    except Exception as error:  # a compiler's own, of many kinds: told as a fault of this variant
        return {**line, "faults": [f"does not compile: {type(error).__name__}: {error}"[:2000]]}
    line |= measured(built.asm["ptx"], log, built.metadata.shared, launch.warps, task.arch)
    line["seconds"] = round(time.perf_counter() - start, 2)
    return {**line, "faults": list(faults_of(line, launch))}


def _build(launch: Launch, arch: int, aligned: bool) -> tuple[Any, str]:
    """The compiled kernel and what ptxas said of it."""
    names = launch.kernel.arg_names
    missing = set(names) ^ {*launch.signature, *launch.constants}
    if missing:
        raise TypeError(f"signature and constants do not agree with the kernel on {missing}")
    attributes = {}
    if aligned:
        kinds = [launch.signature.get(name, "") for name in names]
        fixed = [one.do_not_specialize for one in launch.kernel.params]  # nothing is assumed of it
        known = ["" if no else kind for kind, no in zip(kinds, fixed, strict=True)]
        whole = [at for at, kind in enumerate(known) if re.match(r"\*|[iu]\d\d", kind)]
        attributes = {(at,): [["tt.divisibility", 16]] for at in whole}
    signature = {name: launch.signature.get(name, "constexpr") for name in names}
    source = ASTSource(launch.kernel, signature, dict(launch.constants), attributes)
    knobs.nvidia.dump_ptxas_log = True  # printed, and lost otherwise
    knobs.compilation.always_compile = True
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        built = triton.compile(
            source,
            target=GPUTarget("cuda", arch, WARP),
            options={
                "num_warps": launch.warps,
                "num_stages": launch.stages,
                "enable_fp_fusion": launch.fused,
            },
        )
    return built, told.getvalue()


def measured(ptx: str, log: str, shared: int, warps: int, arch: int) -> Line:
    """What compiled code takes of a GPU, from its text and the assembler's log."""
    instructions = re.findall(r"^\s+(?:@!?%\w+ )?([a-z][\w.:]+)", ptx, re.M)
    registers = _number(r"Used (\d+) registers", log)
    by_registers = REGISTERS // (-(-registers // 8) * 8 * warps * WARP)
    programs = min(by_registers, WARPS[arch] // warps, 32, SHARED[arch] // (shared + 1024))
    return {
        "registers": registers,
        "shared": shared,
        "spills": max(_number(r"(\d+) bytes spill stores", log),
                      _number(r"(\d+) bytes spill loads", log)),
        "stack": _number(r"(\d+) bytes stack frame", log),
        "resident_warps": programs * warps,
        "load_bytes": _widest("ld", instructions, ptx),
        "store_bytes": _widest("st", instructions, ptx),
        "matrix": sorted({n for one in instructions for n in MATRIX if one.startswith(n)}),
        "inexact": sorted({one for one in instructions if INEXACT.search(one)}),
    }  # fmt: skip


def _number(pattern: str, log: str) -> int:
    found = re.findall(pattern, log)
    if not found:
        raise ValueError(f"the assembler says nothing of {pattern!r}:\n{log}")
    return max(map(int, found))


def _widest(kind: str, instructions: list[str], ptx: str) -> int:
    """Bytes of the widest access of a thread to global memory, of `kind` ld or st; 0: none."""
    found = [0]
    for one in instructions:
        if one.startswith(f"{kind}.global"):
            words = re.search(r"(?:\.v(\d))?\.[a-z]+(\d+)$", one)
            if words:
                found.append(int(words[1] or 1) * int(words[2]) // 8)
    if kind == "ld":
        copies = re.findall(
            r"cp\.async\.\w+\.shared\.global[\w.]* \[[^]]*\], \[[^]]*\], (\w+)", ptx
        )
        found += [int(size, 0) for size in copies]
    return max(found)


def faults_of(line: Line, launch: Launch) -> Iterator[str]:
    """Every promise of the launch that the compiled code does not keep."""
    bounds = launch.bounds
    shared = min(bounds.shared, SHARED[line["arch"]])
    most = {"registers": bounds.registers, "shared": shared, "spills": bounds.spills}
    for name, bound in most.items():
        if line[name] > bound:
            yield f"{name}: {line[name]}, at most {bound}"
    asked = launch.instruction
    if asked and not {*MATRIX[asked].get(line["arch"], ("mma.sync",))} & {*line["matrix"]}:
        yield f"instruction: {asked} asked for, found {line['matrix'] or 'none'}"
    if not launch.fused and line["inexact"]:
        yield f"rounds otherwise than each operation to nearest: {', '.join(line['inexact'])}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--package", default=PACKAGE)
    parser.add_argument("--only", default="", help="a pattern of MODULE:VARIANT")
    parser.add_argument(
        "--arch", type=int, nargs="+", default=ARCHITECTURES, choices=sorted(SHARED)
    )
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--unaligned", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
