"""Every Triton kernel compiles for sm_80 and sm_90 within what its `Launch` promises.

benchmarks/compiled.py does it, in processes without the interpreter: a kernel that was defined for
the interpreter cannot be compiled. No kernel is run here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "compiled.py"
ARCHITECTURES = (80, 90)

KERNELS = """
import triton
import triton.language as tl

@triton.jit
def twice(x):
    return x * 2.0 + 1.0

@triton.jit
def line(x, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < n, other=0.0)
    tl.store(out + at, twice(value), mask=at < n)

@triton.jit
def crowded(x, out, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    value = tl.load(x + at)
    tl.store(out + at, value - tl.max(value, 0))

@triton.jit
def product(a, b, out, TILE: tl.constexpr):
    at = tl.arange(0, TILE)
    tile = at[:, None] * TILE + at[None, :]
    tl.store(out + tile, tl.dot(tl.load(a + tile), tl.load(b + tile)))

@triton.jit
def forgotten(x):
    tl.store(x, 1.0)
"""
LAUNCHES = """
from broken.some_kernels import crowded, line, product
from qconvert.kernels.gpu.launch import Bounds, Launch

LINE = {"x": "*fp32", "out": "*fp32", "n": "i32"}
TILES = {"a": "*fp16", "b": "*fp16", "out": "*fp32"}
BLOCK = {"BLOCK": 1024}
VARIANTS = {
    "exact": lambda: Launch(line, LINE, BLOCK),
    "fused": lambda: Launch(line, LINE, BLOCK, fused=True),
    "product": lambda: Launch(product, TILES, {"TILE": 64}, instruction="wgmma"),
    "wide": lambda: Launch(line, LINE, BLOCK, bounds=Bounds(registers=8)),
    "shared": lambda: Launch(product, TILES, {"TILE": 64}, bounds=Bounds(shared=4096)),
    "spills": lambda: Launch(crowded, {"x": "*fp32", "out": "*fp32"}, {"BLOCK": 16384}, warps=1),
    "vector": lambda: Launch(line, LINE, BLOCK, instruction="mma.sync"),
    "unknown": lambda: Launch(line, LINE, {"SIZE": 1024}),
}
"""


def run(cache: Path, *options: str) -> list[dict[str, Any]]:
    """The lines that the script prints, the last one its summary."""
    given = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-P", str(SCRIPT), *options],
        env={**given, "TRITON_CACHE_DIR": str(cache), "PYTHONPATH": str(cache)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    assert done.stdout.strip(), done.stderr
    print(done.stdout)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == bool(lines[-1]["faults"] or lines[-1]["not_compiled"])
    return lines


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run(tmp_path_factory.mktemp("compiled"))


def test_every_launched_kernel_is_compiled(lines: list[dict[str, Any]]) -> None:
    assert lines[-1]["kernels"] > 0
    assert lines[-1]["not_compiled"] == []


def test_every_variant_is_compiled_for_every_architecture(lines: list[dict[str, Any]]) -> None:
    found = [(line["variant"], line["arch"]) for line in lines[:-1]]
    names = {name for name, _ in found}
    assert len(found) == len(set(found)) == lines[-1]["variants"]
    assert set(found) == {(name, arch) for name in names for arch in ARCHITECTURES}


def test_what_is_compiled_keeps_every_promise(lines: list[dict[str, Any]]) -> None:
    """Registers, shared memory, spills; the matrix instruction; one rounding an operation."""
    broken = {f"{line['variant']} sm_{line['arch']}": line["faults"] for line in lines[:-1]}
    assert {name: faults for name, faults in broken.items() if faults} == {}


def test_broken_promises_are_found(tmp_path: Path) -> None:
    package = tmp_path / "broken"
    package.mkdir()
    for name, text in (("__init__", ""), ("some_kernels", KERNELS), ("some", LAUNCHES)):
        (package / f"{name}.py").write_text(text, encoding="utf-8")
    lines = run(tmp_path, "--package", "broken", "--arch", "90")
    found = {line["variant"].partition(":")[2]: line for line in lines[:-1]}
    faults = {
        name: [one.partition(":")[0] for one in line["faults"]] for name, line in found.items()
    }
    assert faults == {
        "exact": [], "fused": [], "product": [], "wide": ["registers"], "shared": ["shared"],
        "spills": ["spills"], "vector": ["instruction"], "unknown": ["does not compile"],
    }  # fmt: skip
    assert found["product"]["matrix"] == ["wgmma"]
    assert found["fused"]["inexact"] == ["fma.rn.f32"]
    assert found["exact"]["load_bytes"] == found["exact"]["store_bytes"] == 16
    assert lines[-1]["not_compiled"] == ["some_kernels.forgotten"]
