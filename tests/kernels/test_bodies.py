"""Every operation has one signature and three bodies; Triton is named in one room alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from qconvert.kernels.bodies import body_for, has_triton, module

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "kernels"
ROOMS = ("kernels", "formats", "runtimes", "converter")
BODIES = ("plain", "cpu", "gpu")
NO_OPERATION = ("__init__", "launch", "storing")  # of the modules in gpu/
OPERATIONS = sorted(
    path.stem
    for path in (KERNELS / "gpu").glob("*.py")
    if path.stem not in NO_OPERATION and not path.stem.endswith("_kernels")
)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{one.name}" for one in node.names)


def functions(body: str, operation: str) -> dict[str, list[str]]:
    """Public functions of a body -> their parameters; those of another body that it takes over,
    too."""
    found = {}
    for node in tree_of(KERNELS / body / f"{operation}.py").body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            given = node.args
            every = (*given.posonlyargs, *given.args, *given.kwonlyargs)
            found[node.name] = [one.arg for one in every]
        elif isinstance(node, ast.ImportFrom):
            words = (node.module or "").split(".")
            if len(words) == 4 and words[1] == "kernels" and words[2] in BODIES:
                others = functions(words[2], words[-1])
                found |= {one.name: others[one.name] for one in node.names if one.name in others}
    return found


def called(operation: str) -> set[str]:
    """Names that the operation may ask a body for: attributes, and words of its data (of searches,
    in a module of their own)."""
    found = set()
    data = [f"{operation}.py", *(["searches.py"] if operation == "fit" else [])]
    for node in (one for name in data for one in ast.walk(tree_of(KERNELS / name))):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found


@pytest.mark.parametrize("operation", OPERATIONS)
def test_bodies_of_an_operation_have_one_signature(operation: str) -> None:
    found = {body: functions(body, operation) for body in BODIES}
    public = called(operation) & set(found["plain"])
    assert public
    for name in public:
        assert found["gpu"][name] == found["plain"][name], name
        assert name in found["cpu"], name


def test_there_are_operations_on_a_gpu() -> None:
    assert OPERATIONS


def test_triton_is_imported_in_its_room_alone() -> None:
    """And files of kernels import nothing but Triton and each other: no torch, no environment."""
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            names = set(imported(tree_of(path)))
            if path.name.endswith("_kernels.py"):
                mine = {one for one in names if not one.startswith("triton")}
                assert all(
                    one.startswith("qconvert.kernels.gpu.") and "_kernels" in one for one in mine
                ), (path, mine)
            elif path.parent != KERNELS / "gpu":
                assert not {one for one in names if one.split(".")[0] == "triton"}, path


def test_launchers_are_imported_by_launchers_alone() -> None:
    """The others ask `bodies.module` for them, by name and when a tensor is on a GPU."""
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            if path.parent != KERNELS / "gpu":
                names = imported(tree_of(path))
                assert not [one for one in names if "kernels.gpu" in one], path


def test_kernels_are_launched_as_they_are_proved() -> None:
    """`kernel[programs](...)` stands in `launch.py` alone: nothing else launches."""
    found = {
        path.stem
        for path in (KERNELS / "gpu").rglob("*.py")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript)
        if not path.name.endswith("_kernels.py")
        if isinstance(node.func.value, ast.Name | ast.Attribute)
        if "kernel" in ast.unparse(node.func.value)
    }
    assert found == {"launch"}


def test_the_body_follows_the_device() -> None:
    assert body_for(torch.device("cpu")) == "cpu"
    assert body_for(torch.device("cpu"), "plain") == "plain"
    assert body_for(torch.device("meta")) == "plain"
    assert module("plain", "fit").__name__ == "qconvert.kernels.plain.fit"


@pytest.mark.parametrize(("capability", "body"), [((7, 5), "plain"), ((8, 0), "gpu")])
def test_old_gpus_have_the_plain_body(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], body: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert body_for(torch.device("cuda")) == (body if has_triton() else "plain")
    assert body_for(torch.device("cuda"), "gpu") == "gpu"


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None  # importing it raises ImportError
from qconvert.asked import Asked
from qconvert.pipeline import convert
asked = Asked(method=sys.argv[3], calib_rows=2, calib_length=16, compute="float32")
convert(sys.argv[1], "gguf", out=sys.argv[2], type="Q4_K_M", asked=asked, threads=1)
print([name for name in sys.modules if name.startswith("qconvert.kernels.gpu")])
"""


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_a_conversion_on_a_cpu_needs_no_triton(
    method: str, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.gguf"
    done = subprocess.run(
        [sys.executable, "-P", "-c", WITHOUT_TRITON, str(tiny_model("llama")), str(out), method],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert out.stat().st_size > 0
