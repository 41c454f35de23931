"""Faults that other exporters have shipped, put back into a copy of this tree: are they caught?

    python benchmarks/traps.py [--only NUMBER,...]

Each trap names the line that would bring it back and the tests that must fail then. Prints one JSON
line each; exits with 1 when a fault goes unseen, or when the tests fail without it. That every line
and every test is still there is held by tests/test_traps.py.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("converter", "formats", "runtimes", "kernels")
SERVING = "tests/formats/serving"


@dataclass(frozen=True)
class Trap:
    name: str
    file: str
    line: str  # a piece of `file` that is there once
    fault: str  # what stands there instead
    tests: tuple[str, ...]  # at least one fails with the fault, none without


TRAPS = (
    Trap("the written granularity is not the one asked for",
         "formats/serving/containers/ct_args.py",
         '"strategy": kind.spans[span]', '"strategy": "block"',
         ("tests/test_traps.py::test_the_granularity_is_the_one_asked_for",)),
    Trap("a linear in float is not on the ignore list",
         "formats/serving/containers/compressed_tensors.py",
         '"ignore": list(told.floats)', '"ignore": list(told.floats)[:-1]',
         (f"{SERVING}/test_containers.py::test_floats_are_told_both_ways",)),
    Trap("4 bytes for each weight",
         "formats/serving/layouts/words.py",
         "return _as_words(pack_bytes(codes, bits))", "return codes.astype('<i4')",
         (f"{SERVING}/test_layouts.py::test_an_independent_reader_finds_codes_and_values",)),
    Trap("the head is quantized by accident",
         "formats/serving/fused.py",
         'if one.block is not None and one.part == "weight" and one.role in LINEARS',
         'if one.part == "weight" and one.role in (*LINEARS, "head")',
         (f"{SERVING}/test_plan.py::test_every_linear_of_the_blocks_is_quantized_and_nothing_else",
          "tests/test_traps.py::test_head_and_embedding_stay_float")),
    Trap("g_idx is permuted without a word",
         "formats/serving/layouts/gptq.py",
         'name(linear, "g_idx"): _natural(linear),',
         'name(linear, "g_idx"): _natural(linear)[::-1],',
         (f"{SERVING}/test_layouts.py::test_an_independent_reader_finds_codes_and_values",)),
    Trap("a code of the grid is never used",
         "formats/integer.py",
         "return Symmetric(self.group, -half, half - 1",
         "return Symmetric(self.group, 1 - half, half - 1",
         ("tests/formats/test_integer.py::test_every_code_is_in_use",)),
    Trap("a list within the list of ignored linears",
         "formats/serving/containers/compressed_tensors.py",
         '"ignore": list(told.floats)', '"ignore": [list(told.floats)]',
         (f"{SERVING}/test_containers.py::test_floats_are_told_both_ways",)),
    Trap("weight_shape is missing",
         "formats/serving/layouts/pack_quantized.py",
         'Entry(name(linear, "weight_shape"), "I64", (2,)),', "",
         (f"{SERVING}/test_layouts.py::test_the_tensors_are_those_of_the_format",)),
    Trap("a tensor that no loader knows",
         "formats/serving/layouts/awq.py",
         'Entry(name(linear, "scales"), "F16", (groups, rows)),',
         'Entry(name(linear, "scales"), "F16", (groups, rows)),'
         ' Entry(name(linear, "buf_perm"), "I32", (cols,)),',
         (f"{SERVING}/test_layouts.py::test_the_tensors_are_those_of_the_format",)),
    Trap("nibbles in the other order",
         "formats/serving/layouts/words.py",
         "packed |= codes[..., place::step] << np.uint8(bits * place)",
         "packed = packed << np.uint8(bits) | codes[..., place::step]",
         (f"{SERVING}/test_golden.py::test_pack_quantized",)),
    Trap("AWQ's outputs in their natural order",
         "kernels/word_layouts.py",
         "ORDER = (0, 2, 4, 6, 1, 3, 5, 7)", "ORDER = (0, 1, 2, 3, 4, 5, 6, 7)",
         (f"{SERVING}/test_golden.py::test_awq_order_of_outputs",)),
    Trap("GPTQ's zero point is not stored minus one",
         "formats/serving/layouts/gptq.py",
         "middle - 1, np.uint8)", "middle, np.uint8)",
         (f"{SERVING}/test_golden.py::test_gptq",)),
    Trap("AWQ's zero point is stored minus one",
         "formats/serving/layouts/awq.py",
         'zeros = params["zero"].astype(np.uint8)', 'zeros = params["zero"].astype(np.uint8) - 1',
         (f"{SERVING}/test_layouts.py::test_an_independent_reader_finds_codes_and_values",)),
    Trap("biases are dropped",
         "formats/serving/planning.py",
         "    for tensor in drawn.source.tensors:\n        linear",
         '    for tensor in [t for t in drawn.source.tensors if t.part != "bias"]:\n        linear',
         (f"{SERVING}/test_plan.py::test_biases_stay",)),
    Trap("a divisor is stored where a multiplier is read",
         "formats/serving/containers/compressed_tensors.py",
         'InputScale("input_global_scale", (1,), FP4_RANGE, inverse=True)',
         'InputScale("input_global_scale", (1,), FP4_RANGE)',
         (f"{SERVING}/test_containers.py::test_measured_numbers",)),
    Trap("linears that a runtime joins have different scales",
         "formats/serving/planning.py",
         "(name,) if scheme.alone else names", "(name,)",
         (f"{SERVING}/test_plan.py::test_joined_linears_share_one_scale",)),
    Trap("a scale is rounded when it is stored",
         "formats/serving/layouts/numbers.py",
         "if not np.array_equal(decode_floats(stored, dtype), wanted):", "if False:",
         (f"{SERVING}/test_layouts.py::test_a_scale_is_never_rounded",)),
    Trap("statistics of one batch stand for all of them",
         "converter/engine/sums.py",
         "self.tokens += len(x)", "self.tokens = len(x)",
         ("tests/converter/engine/test_sums.py::test_moments_are_those_of_float64",)),
)  # fmt: skip


def pytest_fails(tree: Path, tests: tuple[str, ...]) -> bool:
    """Whether a test fails in `tree`; `SystemExit` when they could not be run at all."""
    links = {**os.environ, "PYTHONPATH": str(tree / ".import"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=tree, env=links, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(command)}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 1


def copy_of_tree(folder: Path) -> Path:
    """What the tests need, importable under the import name before what is installed."""
    tree = folder / "tree"
    for name in (*ROOMS, "tests", "benchmarks", "examples"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "Makefile"):
        shutil.copy(ROOT / name, tree / name)
    package = tree / ".import" / "qconvert"
    package.mkdir(parents=True)
    for path in (tree / "converter").iterdir():
        (package / path.name).symlink_to(path)
    for room in ROOMS[1:]:
        (package / room).symlink_to(tree / room)
    return tree


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", help="numbers of traps, counted from 1, by comma")
    only = parser.parse_args().only
    chosen = {int(one) for one in only.split(",")} if only else set(range(1, len(TRAPS) + 1))
    unseen = 0
    with tempfile.TemporaryDirectory(prefix="qconvert-traps-") as folder:
        tree = copy_of_tree(Path(folder))
        for number, trap in enumerate(TRAPS, 1):
            if number not in chosen:
                continue
            path = tree / trap.file
            good = path.read_text("utf-8")
            path.write_text(good.replace(trap.line, trap.fault), "utf-8")
            caught = pytest_fails(tree, trap.tests)
            path.write_text(good, "utf-8")
            clean = not pytest_fails(tree, trap.tests)
            unseen += not (caught and clean)
            line = {"trap": trap.name, "file": trap.file, "caught": caught, "clean": clean}
            print(json.dumps({"number": number, **line, "tests": trap.tests}), flush=True)
    raise SystemExit(int(unseen > 0))


if __name__ == "__main__":
    main()
